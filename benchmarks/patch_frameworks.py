"""Who reads patches, continued: the loaders that come with training frameworks, on files that they wrote themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.patch_contenders import OwnFiles, slices
from benchmarks.patch_data import Box, that_hold

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from aneurysm.types import Triple


class NnUNet(OwnFiles):
    """nnU-Net's reader on files that its own `save_case` wrote, with its block shapes for a patch of 96^3."""

    title = "nnU-Net's reader, float32"
    patch = (96, 96, 96)

    def _write(self, index: int, voxels: NDArray[Any]) -> None:
        from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2

        data = self._stored(voxels)[None]
        blocks, chunks = comp_blosc2_params(data.shape, self.patch, data.itemsize)
        # It wants a segmentation too; it is opened with every case, but neither read nor weighed here.
        name, empty = str(self.folder / str(index)), np.zeros(data.shape, np.int16)
        nnUNetDatasetBlosc2.save_case(data, empty, {}, name, chunks, blocks, chunks, blocks)

    def _stored(self, voxels: NDArray[Any]) -> NDArray[Any]:
        return voxels.astype(np.float32)

    def files(self) -> list[Path]:
        """Return the images without the segmentations."""
        return [path for path in self.folder.glob("*.b2nd") if not path.name.endswith("_seg.b2nd")]

    def open(self) -> None:
        """Make the data set; it opens a case whenever it is asked for one."""
        from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd
        from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

        self.cases = nnUNetDatasetBlosc2(str(self.folder))
        self.crop = crop_and_pad_nd

    def read(self, index: int, start: Triple, shape: Triple) -> Any:
        """Load the case and crop it as nnUNetDataLoader.generate_train_batch does."""
        data, *_ = self.cases.load_case(str(index))
        return self.crop(data, [[s, s + n] for s, n in zip(start, shape, strict=True)], 0)


class NnUNetScaled(NnUNet):
    """The same with z-scores, which is what nnU-Net's preprocessing stores: far more bytes than whole numbers."""

    title = "nnU-Net's reader, z-scores as its preprocessing stores"

    def _stored(self, voxels: NDArray[Any]) -> NDArray[Any]:
        mean, deviation = _moments(voxels)
        return (voxels.astype(np.float32) - mean) / deviation

    def integers(self, patch: Any, index: int) -> NDArray[np.int16]:
        """Undo the scaling."""
        volume = self.volumes[index]
        mean, deviation = _moments(volume.read((0, 0, 0), volume.shape))
        return np.rint(patch[0] * deviation + mean).astype(np.int16)


class NnUNetInt16(NnUNet):
    """The same with our integers, which nnU-Net itself never writes."""

    title = "nnU-Net's reader, int16 (which it never writes)"

    def _stored(self, voxels: NDArray[Any]) -> NDArray[Any]:
        return voxels


class NnUNetOpen(NnUNetInt16):
    """The int16 files again, with the images kept open, which nnU-Net does not."""

    title = "Blosc2 alone, those int16 files kept open"

    def open(self) -> None:
        """Open all images for good."""
        super().open()
        self.images = [self.cases.load_case(str(i))[0] for i in range(len(self.volumes))]

    def read(self, index: int, start: Triple, shape: Triple) -> Any:
        """Slice the open image."""
        return self.images[index][(0, *slices(start, shape))]

    def unmap(self) -> None:
        """Open all again."""
        self.images = []
        self.images = [self.cases.load_case(str(i))[0] for i in range(len(self.volumes))]


class Monai(OwnFiles):
    """MONAI's PersistentDataset, then RandSpatialCropd at a place that it draws itself."""

    title = "MONAI PersistentDataset + RandSpatialCropd: a whole volume for each patch"
    rare = True

    def _write(self, index: int, voxels: NDArray[Any]) -> None:
        sources = self.folder / "sources"
        sources.mkdir(exist_ok=True)
        np.save(sources / f"{index}.npy", voxels)
        if index == len(self.volumes) - 1:
            # The first use of an item fills the data set's cache.
            data = self._dataset((8, 8, 8))[0]
            for i in range(len(data)):
                data[i]

    def _dataset(self, patch: Triple) -> tuple[Any, Any]:
        from monai.data import PersistentDataset
        from monai.transforms import Compose, LoadImaged, RandSpatialCropd

        crop = RandSpatialCropd("image", patch, random_size=False)
        load = LoadImaged("image", ensure_channel_first=True)
        items = [{"image": str(self.folder / "sources" / f"{i}.npy")} for i in range(len(self.volumes))]
        return PersistentDataset(items, Compose([load, crop]), self.folder), crop

    def open(self) -> None:
        """Keep a data set for each size of patch; all of them read the same files."""
        import torch

        torch.set_num_threads(1)
        self.datasets: dict[Triple, tuple[Any, Any]] = {}

    def read(self, index: int, start: Triple, shape: Triple) -> Any:
        """Take an item of the data set."""
        del start
        if shape not in self.datasets:
            self.datasets[shape] = self._dataset(shape)
        data, crop = self.datasets[shape]
        patch = data[index]["image"]
        z, y, x = (s.start for s in crop.cropper._slices)  # noqa: SLF001
        self.at = Box(index, (z, y, x))
        return patch


class TorchIO(OwnFiles):
    """TorchIO's Queue with a UniformSampler: 8 patches of each volume that it loads, at places that it draws itself."""

    title = "TorchIO Queue + UniformSampler: a whole .nii.gz for 8 patches"
    rare = True
    samples = 8

    def _write(self, index: int, voxels: NDArray[Any]) -> None:
        import SimpleITK as sitk

        sitk.WriteImage(sitk.GetImageFromArray(voxels), str(self.folder / f"{index}.nii.gz"))

    def open(self) -> None:
        """Keep a queue for each size of patch."""
        import torch

        torch.set_num_threads(1)
        self.queues: dict[Triple, Iterator[Any]] = {}

    def round_of(self, patch: Triple, count: int) -> int:
        """Take a whole epoch, which loads each volume once: less would be the queue's filling, or its emptying."""
        del count
        return self.samples * len(that_hold(self.volumes, patch))

    def read(self, index: int, start: Triple, shape: Triple) -> Any:
        """Take the queue's next patch."""
        del index, start
        if shape not in self.queues:
            self.queues[shape] = self._patches(shape)
        subject = next(self.queues[shape])
        x, y, z = (int(n) for n in subject["location"][:3])
        self.at = Box(subject["index"], (z, y, x))
        return subject["image"].data

    def _patches(self, patch: Triple) -> Iterator[Any]:
        import torchio

        fitting = that_hold(self.volumes, patch)
        files = [(i, self.folder / f"{i}.nii.gz") for i in fitting]
        subjects = [torchio.Subject(image=torchio.ScalarImage(path), index=i) for i, path in files]
        sampler = torchio.UniformSampler(patch[::-1])  # its axes are x, y, z
        queue = torchio.Queue(
            torchio.SubjectsDataset(subjects), self.samples * len(fitting), self.samples, sampler, num_workers=0
        )
        while True:
            yield queue[0]

    def integers(self, patch: Any, index: int) -> NDArray[np.int16]:
        """Turn (1, x, y, z) into (z, y, x)."""
        return super().integers(patch[0].permute(2, 1, 0), index)


def _moments(voxels: NDArray[Any]) -> tuple[np.float32, np.float32]:
    return np.float32(voxels.mean(dtype=np.float64)), np.float32(voxels.std(dtype=np.float64))

"""One patient in one scanner: draws everything that is random about a scene from its own named streams."""

from __future__ import annotations

import numpy as np

from aneurysm.phantom.aneurysms import grow_lesions
from aneurysm.phantom.branches import Branch, Tree
from aneurysm.phantom.contrast import Flow, draw_shading, draw_tissues
from aneurysm.phantom.offshoots import add_offshoots
from aneurysm.phantom.pose import random_pose
from aneurysm.phantom.randomness import Streams
from aneurysm.phantom.render import Scene
from aneurysm.phantom.vessels import grow_tree


def draw_scene(modality: str, sites: tuple[str, ...], streams: Streams, difficulty: float) -> Scene:
    """Draw the scene of one series with an aneurysm at each of ``sites``."""
    tree = grow_tree(streams("vessels"), frozenset(sites))
    add_offshoots(tree, streams("offshoots"))
    lesions = grow_lesions(tree, sites, streams("lesions"), difficulty)
    rng = streams("contrast")
    return Scene(
        modality=modality,
        pose=random_pose(streams("pose")),
        tree=tree,
        lesions=lesions,
        plaques=_grow_plaques(tree, streams("plaques")),
        tissues=draw_tissues(modality, rng),
        flow=Flow(time_of_flight=modality == "MRA", decay_mm=float(rng.uniform(220, 450))),
        shading=None if modality == "CTA" else draw_shading(rng),
    )


def _grow_plaques(tree: Tree, rng: np.random.Generator) -> list[Branch]:
    """Calcified plaques in the walls of the siphons and the vertebral arteries of about half of the heads."""
    plaques: list[Branch] = []
    if rng.random() < 0.45:
        return plaques
    for _ in range(int(rng.integers(1, 9))):
        where = str(rng.choice(["left_ica_infra", "right_ica_infra", "left_va", "right_va"], p=[0.4, 0.4, 0.1, 0.1]))
        branch = tree.branches[where]
        n = len(branch.points)
        middle = int(n * (rng.uniform(0.84, 0.985) if "ica" in where else rng.uniform(0.86, 0.98)))
        half = int(rng.integers(1, 4))
        part = slice(max(0, middle - half), min(n, middle + half + 1))
        _, along, radius = branch.at(middle / (n - 1))
        out = np.cross(along, rng.normal(0, 1, 3))
        out /= np.linalg.norm(out)
        size = float(rng.uniform(0.45, 1.0))
        points = branch.points[part] + out * (radius + 0.2 * size)
        plaques.append(Branch("plaque", points, np.full(len(points), size)))
    return plaques

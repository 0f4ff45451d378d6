"""What the system says of mounts, memory, CPUs and quotas, by texts as it writes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from aneurysm.processes.host import Host, Mount, cpu_quota, memory_limit, mount_of, quota_left, read_text, run_tool
from tests.support.fake_host import fake_host

MOUNTS = """\
/dev/vda / ext4 rw,relatime 0 0
tmpfs /run tmpfs rw,nosuid 0 0
server:/export /data nfs4 rw,vers=4.2,local_lock=none,addr=10.0.0.1 0 0
/dev/sdb /data/my\\040disk xfs rw 0 0
mds:/fs /scratch lustre rw,flock 0 0
mds:/fs2 /scratch lustre rw,localflock 0 0
short line
"""


@pytest.mark.parametrize(
    "path, point, kind",
    [
        ("/home/a", "/", "ext4"),
        ("/data", "/data", "nfs4"),
        ("/data/my disk/a", "/data/my disk", "xfs"),
        ("/database", "/", "ext4"),
        ("/scratch/a", "/scratch", "lustre"),
    ],
)
def test_the_innermost_mount_counts_and_of_two_the_later(path: str, point: str, kind: str) -> None:
    found = mount_of(Path(path), fake_host({"/proc/self/mounts": MOUNTS}))
    assert found is not None
    assert (found.point, found.kind) == (point, kind)
    if kind == "lustre":
        assert "localflock" in found.options
    if kind == "nfs4":
        assert found.options["local_lock"] == "none"


def test_of_nothing_nothing_is_known() -> None:
    nobody = fake_host({})
    assert mount_of(Path("/a"), nobody) is None
    assert memory_limit(nobody) is None
    assert cpu_quota(nobody) is None
    assert quota_left(Mount("/", "ext4", {}, "/dev/vda"), nobody) is None
    assert read_text("/there/is/none") == ""
    assert run_tool(["there-is-no-such-tool"]) == ""


MEMINFO = {"/proc/meminfo": "MemTotal:       16000000 kB\nMemFree: 1 kB\n"}


@pytest.mark.parametrize(
    "files, environ, limit",
    [
        (MEMINFO, {}, 16_000_000 * 1024),
        (MEMINFO, {"SLURM_MEM_PER_NODE": "12288"}, 12288 * 2**20),
        (
            MEMINFO
            | {
                "/proc/self/cgroup": "0::/kubepods/pod1/c\n",
                "/sys/fs/cgroup/kubepods/pod1/c/memory.max": "max\n",
                "/sys/fs/cgroup/kubepods/pod1/memory.max": "8589934592\n",
            },
            {},
            2**33,
        ),
        (
            MEMINFO
            | {
                "/proc/self/cgroup": "4:cpu,memory:/job\n0::/\n",
                "/sys/fs/cgroup/memory/job/memory.limit_in_bytes": "4294967296\n",
                "/sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            },
            {},
            2**32,
        ),
    ],
)
def test_the_lowest_limit_of_memory_counts(files: dict[str, str], environ: dict[str, str], limit: int) -> None:
    assert memory_limit(fake_host(files, environ=environ)) == limit


def test_the_quota_of_cpus_is_the_lowest_above() -> None:
    files = {
        "/proc/self/cgroup": "0::/a/b\n",
        "/sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
        "/sys/fs/cgroup/a/cpu.max": "350000 100000\n",
    }
    assert cpu_quota(fake_host(files)) == 3.5


QUOTA = """\
Disk quotas for user a (uid 1000):
     Filesystem  blocks   quota   limit   grace   files   quota   limit   grace
server:/export  {blocks} {quotas} 0   {files} 0 0 0
"""


@pytest.mark.parametrize(
    "values, left",
    [
        ({"blocks": "1000", "quotas": "5000 8000", "files": "10"}, (4000 * 1024, None)),
        ({"blocks": "1000", "quotas": "0 900", "files": "10"}, (0, None)),
        ({"blocks": "950*", "quotas": "900 0", "files": "10"}, (0, None)),
        ({"blocks": "x", "quotas": "900 0", "files": "10"}, None),
    ],
)
def test_what_a_quota_leaves(values: dict[str, str], left: object) -> None:
    mount = Mount("/data", "nfs4", {}, "server:/export")
    assert quota_left(mount, fake_host({}, tools={"quota": QUOTA.format(**values)})) == left
    assert quota_left(Mount("/", "ext4", {}, "/dev/vda"), fake_host({}, tools={"quota": QUOTA})) is None


def test_the_quota_of_lustre_is_asked_of_its_own_tool() -> None:
    text = "     /scratch 2048 0 4096 - 7 10 0 -\n"
    mount = Mount("/scratch", "lustre", {}, "mds:/fs")
    assert quota_left(mount, fake_host({}, tools={"lfs": text})) == (2048 * 1024, 3)


def test_this_host_answers() -> None:
    host = Host()
    assert (memory_limit(host) or 0) > 10**8
    assert mount_of(Path("/"), host) is not None

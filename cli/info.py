"""aneurysm info: what is in a cache, or in one volume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from aneurysm.cli.options import CacheOption
from aneurysm.errors import UsageError
from aneurysm.inputs import InputKind, describe
from aneurysm.sizes import size_text


def info(
    uid: Annotated[str | None, typer.Argument(metavar="UID", help="A series; the whole cache if not given.")] = None,
    cache: CacheOption = "cache",
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    png: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw the series to this file, .png or .jpg.", show_default=False),
    ] = None,
) -> None:
    """Show what is in the cache, or in one of its volumes."""
    from aneurysm.cache.summary import describe_cache, describe_volume, find_volume

    if uid is not None and (found := describe(uid)).kind in (InputKind.CACHE, InputKind.CACHE_VOLUME):
        name = found.path.name.removesuffix(".zarr")
        command = f"--cache {uid}" if found.kind == InputKind.CACHE else f"{name} --cache {found.better}"
        raise UsageError(f"{uid} is {found.words}, and no UID: aneurysm info {command}")
    if png is not None:
        if uid is None:
            raise UsageError("--png draws one series: give its UID, too")
        from aneurysm.report.volume_picture import draw_volume

        draw_volume(find_volume(cache, uid), png)
    facts = describe_cache(cache) if uid is None else describe_volume(cache, uid)
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    # On a pipe, rich would fold at 80 columns, and cut what a script looks for.
    console = Console() if Console().is_terminal else Console(width=160)
    if uid is None:
        _print_cache(console, facts)
    else:
        _print_volume(console, facts)
    if png is not None:
        typer.echo(f"drawn to {png}")


def _print_cache(console: Console, facts: dict[str, Any]) -> None:
    status = ", ".join(f"{n} {name}" for name, n in facts["status"].items()) or "no series"
    spacing = " x ".join(f"{v:g}" for v in facts["spacing_mm"])
    small, large = ("x".join(map(str, facts["shape_zyx"][k])) for k in ("smallest", "largest"))
    _pairs(
        console,
        {
            "cache": facts["cache"],
            "spec": f"{facts['spec']} version {facts['spec_version']}, recipe {facts['recipe']}, digest "
            f"{facts['digest']}, {spacing} mm",
            "series": status,
            "shapes (z, y, x)": f"{small} to {large}" if small else "-",
            "bytes": f"{size_text(facts['bytes_in'])} of input in {size_text(facts['bytes_out'])}",
            "built by": _builder_text(facts["built_by"]),
        },
    )
    table = _table("modality", "volumes", "lesions", "gigavoxels", "MB")
    for name, group in facts["modalities"].items():
        table.add_row(name, *(f"{group[k]:,}" for k in ("volumes", "lesions", "gigavoxels", "megabytes")))
    _show(console, table)
    if len(facts["built_by"]) > 1:
        table = _table("built by", "volumes", "versions that differ")
        common = _common_versions(facts["built_by"])
        for builder in facts["built_by"]:
            differing = {k: v for k, v in builder["versions"].items() if k not in common}
            table.add_row(builder["builder"], str(builder["volumes"]), _versions_text(differing) or "not known")
        _show(console, table)
    for title, key in (("label", "labels"), ("decision", "decisions"), ("not cached because of", "reasons")):
        if facts[key]:
            table = _table(title, "series")
            for name, n in facts[key].items():
                table.add_row(name, str(n))
            _show(console, table)


def _builder_text(builders: list[dict[str, Any]]) -> str:
    common = _versions_text(_common_versions(builders)) or "-"
    return common if len(builders) < 2 else f"{common}, and versions that differ from volume to volume, see below"


def _common_versions(builders: list[dict[str, Any]]) -> dict[str, str]:
    """Return the versions that all builders have; those of one that is not known are no builder's."""
    known = [builder["versions"] for builder in builders if builder["versions"]] or [{}]
    return {name: version for name, version in known[0].items() if all(v.get(name) == version for v in known)}


def _versions_text(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _print_volume(console: Console, facts: dict[str, Any]) -> None:
    intensity, source = facts["intensity"], facts["source"]
    positive = [k for k, v in (facts["labels"] or {}).items() if v]
    _pairs(
        console,
        {
            "series": facts["series_uid"],
            "path": facts["path"],
            "modality": f"{facts['modality']} (from {facts['modality_source']})",
            "shape (z, y, x)": "x".join(map(str, facts["shape"])),
            "stored": f"{facts['files']} files, {size_text(facts['bytes'])}",
            "intensity": f"{intensity['unit']}: stored x {intensity['scale']:g} + {intensity['offset']:g}, kept "
            f"{intensity['clip'][0]:g} to {intensity['clip'][1]:g}, shown {intensity['window'][0]:g} to "
            f"{intensity['window'][1]:g}",
            "affine (z, y, x) to LPS": "\n".join(" ".join(f"{v:10.4f}" for v in row) for row in facts["affine_lps"]),
            "source": f"{source['plane'] or 'array'}, {'x'.join(map(str, source['shape']))} voxels of "
            f"{' x '.join(f'{v:g}' for v in source['spacing_mm'])} mm, tilt {source['tilt_deg']:g} degrees, "
            f"{source['files']} files",
            "labels": ("; ".join(positive) or "none positive") if facts["labels"] else "not known",
            "bone": _bone_text(facts),
            "digest": facts["digest"],
            "voxel hash": facts["voxel_hash"],
            "annotation hash": facts["annotation_hash"],
            "built by": _versions_text(facts["built_by"]),
        },
    )
    if facts["lesions"] or facts["unplaced_lesions"]:
        table = _table("lesion", "voxel (z, y, x)", "LPS mm")
        for lesion in facts["lesions"]:
            table.add_row(lesion["location"], *(", ".join(f"{v:.1f}" for v in lesion[k]) for k in ("zyx", "lps_mm")))
        for lesion in facts["unplaced_lesions"]:
            table.add_row(lesion["location"], f"not placed: {lesion['reason']}", lesion["detail"])
        _show(console, table)
    if facts["decisions"]:
        table = _table("decision", "detail")
        for decision in facts["decisions"]:
            table.add_row(decision["code"], decision["detail"])
        _show(console, table)


def _bone_text(facts: dict[str, Any]) -> str:
    if facts["bone_problem"]:
        return f"no label: {facts['bone_problem']}"
    bone = facts["bone"]
    return f"labelled by version {bone['version']}, in cells of {'x'.join(map(str, bone['edge']))} voxels"


def _pairs(console: Console, values: dict[str, str]) -> None:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in values.items():
        table.add_row(name, value)
    _show(console, table)


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _show(console: Console, table: Table) -> None:
    # Square brackets in a value are no markup.
    console.print(table, markup=False)

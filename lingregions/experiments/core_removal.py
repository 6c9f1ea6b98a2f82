"""Remove the core linguistic region, and what else a fair comparison needs, and see what each language loses.

The paper's first experiment: the core is the top of the scores combined over the scored languages, taken in every
matrix; its removal is set against removing the bottom and random regions of the same size, against random ones that are
matched to it, and against the largest weights. Parts of the core - one kind of matrix, one layer, the norms or all but
them - are removed by themselves where the config asks for it.
"""

from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from lingregions import regions
from lingregions.effects import Effects
from lingregions.experiments import claims, selection, step, study, tables
from lingregions.experiments.context import Context
from lingregions.intervention import Intervention
from lingregions.models import roles

_SELECTORS = (*regions.SELECTORS, "matched", "magnitude")  # by the scores, and the two controls beside them


def _check(settings: ConfigDict) -> None:
    """Refuse selectors and parts that do not exist, or that need a top which is not removed.

    Raises:
      ValueError: says which.
    """
    chosen = settings.select
    for selector in chosen.selectors:
        if selector not in _SELECTORS:
            raise ValueError(f"there is no selector {selector!r}; select.selectors may hold {', '.join(_SELECTORS)}")
    if "matched" in chosen.selectors and "top" not in chosen.selectors:
        raise ValueError("matched regions are matched to the top: add top to select.selectors")
    if (chosen.modules or chosen.layers) and "top" not in chosen.selectors:
        raise ValueError("select.modules and select.layers take parts of the top: add top to select.selectors")
    if set(selection.DRAWN) & set(chosen.selectors) and not chosen.seeds:
        raise ValueError("select.seeds is empty: random and matched regions need one")
    for part in chosen.modules:
        if part not in roles.PARTS:
            raise ValueError(f"there is no part {part!r}; select.modules may hold {', '.join(roles.PARTS)}")


def _whole(settings: ConfigDict) -> list[Intervention]:
    """Return the regions that are removed whole: every selector at every fraction, with every seed."""
    chosen = settings.select
    return [
        Intervention(kind=selector, fraction=fraction, seed=seed, perturbation="zero")
        for fraction in chosen.fractions
        for selector in chosen.selectors
        for seed in (chosen.seeds if selector in selection.DRAWN else (None,))
    ]


def _pieces(settings: ConfigDict, layers: int) -> list[Intervention]:
    """Return the parts of the first top that are removed by themselves.

    Args:
      settings: the config.
      layers: of the model.

    Raises:
      ValueError: a layer that does not exist.
    """
    chosen = settings.select
    top = {"kind": "top", "fraction": chosen.fractions[0], "perturbation": "zero"}
    numbers = list(range(layers)) if tuple(chosen.layers) == ("all",) else list(chosen.layers)
    for layer in numbers:
        if layer not in range(layers):
            raise ValueError(
                f"there is no layer {layer!r}; select.layers holds numbers below {layers}, or the word all"
            )
    return [
        *(Intervention(**top, part=part.replace("_", " ")) for part in chosen.modules),
        *(Intervention(**top, layer=layer) for layer in numbers),
    ]


def _contrasts(settings: ConfigDict) -> list[tuple[Intervention, Intervention]]:
    """Return every top with each of its controls of the same size."""
    groups = dict.fromkeys(each.group for each in _whole(settings))
    tops = {each.fraction: each for each in groups if each.kind == "top"}
    return [(tops[each.fraction], each) for each in groups if each.kind != "top" and each.fraction in tops]


def _steps(settings: ConfigDict, config: Any) -> list[step.Step]:
    """Score, select, remove."""
    wanted = {each.name: _selection(each) for each in _whole(settings)}
    if settings.select.monolingual:
        wanted |= selection.monolingual(settings)
    return [
        *step.score(settings, config),
        # The matched ones last: they start from the file of their top.
        step.select(settings, config, dict(sorted(wanted.items(), key=lambda item: item[0].startswith("matched")))),
        step.measure(settings, [*_whole(settings), *_pieces(settings, config.layers)], _contrasts(settings)),
    ]


def _selection(each: Intervention) -> selection.Selection:
    if each.kind == "matched":
        assert each.seed is not None
        return selection.matched(each.name, each.fraction, f"top {each.fraction}", each.seed)
    if each.kind == "magnitude":
        return selection.ranked(each.name, each.fraction, "magnitude")
    return selection.ranked(
        each.name, each.fraction, "shapes" if each.kind == "random" else "combined", each.kind, each.seed
    )


def _show(context: Context) -> dict[str, Any]:
    """Return every top against its controls, the parts of it against each other, and the verdict."""
    settings, found = context.settings, context.effects()
    pairs, pieces = _contrasts(settings), _pieces(settings, context.model.config.layers)
    shown: dict[str, Any] = {}
    if pairs:
        columns = {
            **{"region": "text", "control": "text", "region removed": "factor", "control removed": "factor"},
            **{"region over control": "factor", "more harm in": "text"},
        }
        rows = [
            [top.name, control.name, found.cell(top), found.cell(control), *tables.against(found, top, control)[1:]]
            for top, control in pairs
        ]
        shown["contrasts"] = tables.table("The top against its controls", columns, rows, tables.NOTE)
    if pieces:
        title = f"Effect of each part of the top {pieces[0].fraction} by language"
        shown["parts"] = _parts(context, found, pieces)
        shown["parts_by_language"] = tables.by_language(found, {_label(each): each for each in pieces}, title, "part")
    first = pairs[0][0] if pairs else None
    own = {control.kind: control for top, control in pairs if top == first}
    ranked_parts = sorted(pieces, key=lambda each: -found.value(each))
    facts = {"top": first, "controls": own, "parts": ranked_parts, "label": _label}
    return shown | {"verdict": claims.verdict("core_removal", "Is the core linguistic?", found, **facts)}


def _label(part: Intervention) -> str:
    return part.part or f"layer {part.layer}"


def _parts(context: Context, found: Effects, pieces: Sequence[Intervention]) -> dict[str, Any]:
    """Return the table of what each part of the top costs by itself, and how large it is."""
    columns = {"part": "text", "parameters": "count", "perplexity": "factor", "harm in": "text"}
    rows = [
        [_label(each), regions.total(selection.own(context, each)), found.cell(each), tables.harmed(found, each)]
        for each in pieces
    ]
    return tables.table(f"Parts of the top {pieces[0].fraction}, removed by themselves", columns, rows, tables.NOTE)


STUDY = study.Study(_steps, _show, _check)

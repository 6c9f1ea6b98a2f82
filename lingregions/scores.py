"""Scores: the importance of every parameter in scope for one language or several, and the regions selected from it.

The one builder of regions that experiments and the public API share: region = scope + combination + selection +
provenance. What a region's file says of model, tokenizer, data, definition and seeds is filled in here. Combining holds
one language and the sum in memory; arithmetic is `scoring.combine`.
"""

import dataclasses
import fractions
import json
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from lingregions import scoring
from lingregions import tree as trees
from lingregions.display import Shown
from lingregions.models import roles
from lingregions.regions.region import Bearer, Provenance, Region, Within, versions
from lingregions.regions.select import select
from lingregions.scoring import Definition


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Scores(Shown):
    """Scores of one language, or of several combined. `Model.score`, `Run.scores` and `combine` make them.

    Attributes:
      values: float32 tree >= 0, parallel to the score scope, on the shards of the parameters (shapes will do for random
        selections); of a language, what the dtype of the definition holds.
      provenance: definition, languages, samples and their seed; hashes of model, tokenizer and data.
      tokens: targets that were scored.
      nll: their loss, nats; what the untouched model gave.
      model: the model, where it is at hand.
    """

    values: trees.Tree
    provenance: Provenance
    tokens: int = 0
    nll: float = 0.0
    model: Bearer | None = None

    @classmethod
    def read(
        cls,
        values: trees.Tree,
        header: Mapping[str, Any],
        declared: Mapping[str, Any] = MappingProxyType({}),
        model: Bearer | None = None,
    ) -> "Scores":
        """Return scores with the header that they were saved with (the inverse of `header`).

        Args:
          values: the scores.
          header: what `header` returned.
          declared: what is known of every leaf, `regions.region.declared`.
          model: where it is at hand.
        """
        return cls(
            values,
            Provenance(
                # A header of before an option was there lacks it: its default is what was done.
                score=json.dumps(dataclasses.asdict(Definition(**header["definition"])), sort_keys=True),
                languages=tuple(header["languages"]),
                score_scope=header["definition"]["scope"],
                samples=tuple(header["samples"]),
                data_seed=header["seed"],
                model=header["model"],
                tokenizer=header["tokenizer"],
                data=header["data"],
                **declared,
            ),
            header["tokens"],
            header["nll"],
            model,
        )

    def header(self) -> dict[str, Any]:
        """Return all that decides the scores, as JSON: what stands in the header of saved scores."""
        own = self.provenance
        return {
            "languages": list(own.languages),
            "definition": json.loads(own.score),
            "samples": list(own.samples),
            "tokens": self.tokens,
            "nll": self.nll,
            "seed": own.data_seed,
            "model": own.model,
            "tokenizer": own.tokenizer,
            "data": own.data,
            "versions": dict(versions()),
        }

    @property
    def definition(self) -> Definition:
        """How importance is defined."""
        return Definition(**json.loads(self.provenance.score))

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages that went in."""
        return self.provenance.languages

    def select(
        self,
        fraction: float | str | fractions.Fraction,
        selector: str = "top",
        *,
        seed: int | None = None,
        scope: str | None = None,
        within: Within = "matrix",
        name: str = "",
    ) -> Region:
        """Return the region that a selector takes from the scores.

        Args:
          fraction: part of every matrix: "1%", or 0.01.
          selector: "top", "bottom" or "random".
          seed: of a random region.
          scope: the part of the scored parameters that is selected from: a scope, parts such as "q,k", or patterns.
          within: "matrix", or "scope": the fraction of all matrices together.
          name: by default the name of an intervention on it, "top 1%".

        Raises:
          ValueError: a fraction that may mean two things (1: "1%" or 0.01?), an unknown selector or scope, a missing
            seed, scores that are not finite.
        """
        scope = scope or self.provenance.score_scope
        known = self.provenance.replace(name=name, select_scope=scope)
        part = roles.restrict(self.values, scope)
        found = select(part, fraction, selector, seed=seed, within=within, provenance=known)
        return dataclasses.replace(found, model=self.model)

    def _line(self) -> str:
        languages = " ".join(self.languages) or "no language"
        mean = f", {self.nll / self.tokens:.3f} nats a token" if self.tokens else ""
        size = f"{trees.count(self.values):,} parameters"
        return f"{self.definition.rule} of {size}, {languages}: {self.tokens:,} tokens{mean}"

    def _facts(self) -> dict[str, Any]:
        own = self.provenance
        return {
            "definition": own.score,
            "languages": " ".join(own.languages),
            "samples": " ".join(map(str, own.samples)),
            "seed": str(own.data_seed),
            "model": own.model,
            "tokenizer": own.tokenizer,
            "data": own.data,
        }


def combine(scores: Iterable[Scores], normalised: bool | None = None) -> Scores:
    """Return the scores of several languages as one, summed as their definition says, one language in memory at a time.

    Args:
      scores: of the languages.
      normalised: whether each matrix of a language is scaled to the same sum; None: as the definition says. Sums in
        nats, which compare between matrices, are not.

    Raises:
      TypeError: something else than scores.
      ValueError: none, of different models or definitions, or one language twice.
    """
    total: Scores | None = None
    for each in scores:
        total = add(total, each, normalised)
        del each  # before the next is read
    if total is None:
        raise ValueError("combine was given no scores: name at least one language")
    return total


def add(total: Scores | None, other: Scores, normalised: bool | None = None) -> Scores:
    """Return a sum with one more language in it; raises as `combine` does.

    Args:
      total: the sum so far, whose arrays are donated; None for the first language.
      other: the language.
      normalised: see `combine`.
    """
    if not isinstance(other, Scores):
        raise TypeError(f"combine takes scores, as model.score(corpus) gives them, not {type(other).__name__}")
    if total is not None:
        _check_alike(total, other)
    scaled = other.definition.normalised if normalised is None else normalised
    values = scoring.combine(None if total is None else total.values, other.values, scaled)
    if total is None:
        return dataclasses.replace(other, values=values)
    own, more = total.provenance, other.provenance
    known = own.replace(
        languages=own.languages + more.languages, samples=own.samples + more.samples, data=f"{own.data} {more.data}"
    )
    return dataclasses.replace(
        total, values=values, provenance=known, tokens=total.tokens + other.tokens, nll=total.nll + other.nll
    )


def _check_alike(total: Scores, other: Scores) -> None:
    """Refuse scores that cannot be summed."""
    if twice := set(total.languages) & set(other.languages):
        raise ValueError(f"combine was given {sorted(twice)[0]!r} twice; each language counts once")
    for field, what in (("model", "models"), ("score", "definitions"), ("tokenizer", "tokenizers")):
        one, two = getattr(total.provenance, field), getattr(other.provenance, field)
        if one != two:
            raise ValueError(
                f"combine was given scores of different {what}, {one} and {two}: score all languages alike"
            )

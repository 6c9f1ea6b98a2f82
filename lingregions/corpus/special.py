"""Which special tokens stand where: the policy that decides half of all "absurd perplexity" reports.

Explicit and recorded: `bos` is "none", "document" (before the first token of every document) or "sample" (first
position of every sample), `eos` is "none" or "document" (after the last token of every document). A document that
continues in the next sample gets no second BOS there. Special tokens stand for 0 bytes.
"""

from dataclasses import dataclass

from lingregions.models.tokenizer import Tokenizer

_BOS = ("none", "document", "sample")
_EOS = ("none", "document")


@dataclass(frozen=True)
class Policy:
    """Where BOS and EOS stand, and their ids (None where the policy is "none")."""

    bos: str
    eos: str
    bos_id: int | None
    eos_id: int | None

    def __str__(self) -> str:
        """Return the sentence that reports and `data show` print."""
        places = {"document": "of every document", "sample": "of every sample"}
        bos = "no BOS" if self.bos == "none" else f"BOS (id {self.bos_id}) at the start {places[self.bos]}"
        eos = "no EOS" if self.eos == "none" else f"EOS (id {self.eos_id}) at the end {places[self.eos]}"
        return f"{bos}, {eos}"

    @property
    def before(self) -> int:
        """Return the number of special tokens before each document."""
        return int(self.bos == "document")

    @property
    def after(self) -> int:
        """Return the number of special tokens after each document."""
        return int(self.eos == "document")


def policy(tokenizer: Tokenizer, bos: str | None = None, eos: str | None = None) -> Policy:
    """Return the special-token policy; None takes what the model's own tokenizer settings say.

    A tokenizer whose settings put BOS before a text (`adds_bos`) gives bos="document", any other "none"; eos is "none"
    unless asked for. Raises ValueError for an unknown place, for a token that the tokenizer does not have, and where
    BOS and EOS are one token and both would stand between two documents.
    """
    bos = bos or ("document" if tokenizer.adds_bos else "none")
    eos = eos or "none"
    if bos not in _BOS:
        raise ValueError(f"bos is one of {', '.join(_BOS)}, not {bos!r}")
    if eos not in _EOS:
        raise ValueError(f"eos is one of {', '.join(_EOS)}, not {eos!r}")
    if bos != "none" and tokenizer.bos is None:
        raise ValueError(f"the tokenizer {tokenizer.name} has no BOS token: set bos='none' instead of {bos!r}")
    if eos != "none" and tokenizer.eos is None:
        raise ValueError(f"the tokenizer {tokenizer.name} has no EOS token: set eos='none' instead of {eos!r}")
    if bos == eos == "document" and tokenizer.bos == tokenizer.eos:
        raise ValueError(
            f"BOS and EOS of the tokenizer {tokenizer.name} are the same token (id {tokenizer.bos}), so two of it "
            "would stand between documents: set bos='none' or eos='none'"
        )
    return Policy(bos, eos, None if bos == "none" else tokenizer.bos, None if eos == "none" else tokenizer.eos)

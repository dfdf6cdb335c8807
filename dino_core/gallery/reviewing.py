"""What a person should look at, in one list: why, what is suggested, what was decided.

    queue = Queue.of(images, leaks=leaks, alike=groups, doubtful=rows, votes=votes, alone=rows)
    queue.rows, queue.suggestions            # an image stands in it once, for its weightiest reason
    undo = decide(notes, ids, "remove")
    undo.apply(notes)

What is suggested is a rule, not a verdict:
- a leak: what is measured on stays, so images of the less guarded split go (`duplicates.leaked`);
- duplicates: the best copy stays (`duplicates.best_copies`);
- a doubtful label: the one that the neighbors vote for;
- an outlier goes, unless its neighbors vote for its own label.
Leaks and duplicates never contradict each other: a group always keeps an image.

Shapes: N images, Q entries of the queue, C classes.
"""

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from dino_core.gallery.agreement import UNLABELED, Votes, count_votes
from dino_core.gallery.duplicates import (
    NO_CODE,
    Alike,
    Groups,
    codes_of,
    leaked,
    spans,
    to_remove,
)
from dino_core.gallery.notes import Notes, Review, right_label
from dino_core.gallery.opened import Gallery
from dino_core.gallery.progress import Progress, silent
from dino_core.gallery.suspects import Suspects, disagreements, outliers

LEAK, DUPLICATE, LABEL, OUTLIER = "leak", "duplicate", "label", "outlier"
REASONS = (LEAK, DUPLICATE, LABEL, OUTLIER)  # the weightiest first
KEEP, REMOVE, RELABEL = "keep", "remove", "relabel"


@dataclass(frozen=True)
class Queue:
    """Entries, one an image, group after group, by reason."""

    rows: np.ndarray  # int64 [Q]
    reasons: np.ndarray  # object [Q], of REASONS
    groups: np.ndarray  # int64 [Q], number of its group of duplicates; -1: none
    suggestions: np.ndarray  # object [Q]: keep, remove or relabel
    labels: np.ndarray  # object [Q], the suggested label; None but for relabel

    def __len__(self) -> int:
        return len(self.rows)

    @classmethod
    def of(
        cls,
        images: pd.DataFrame,
        *,
        leaks: Groups,
        alike: Groups,
        doubtful: np.ndarray,
        alone: np.ndarray,
        votes: Votes,
    ) -> "Queue":
        """All that was found, each image once.

        `leaks`: groups that are leaks; `alike`: all groups of duplicates; `doubtful` and `alone`:
        rows, the most suspect first.
        """
        none = np.full(max(len(doubtful), len(alone)), NO_CODE)
        parts = [
            _part(LEAK, leaks.rows, leaks.of_rows, _keep_or(leaked(leaks, images))),
            _part(DUPLICATE, alike.rows, alike.of_rows, _keep_or(to_remove(alike, images))),
            _part(LABEL, doubtful, none, _all(RELABEL, len(doubtful)), suggested(votes, doubtful)),
            _part(OUTLIER, alone, none, _of_outliers(votes, alone)),
        ]
        table = pd.concat(parts, ignore_index=True).drop_duplicates("row", ignore_index=True)
        return cls(*(table[name].to_numpy() for name in table.columns))

    def where(self, chosen_Q: np.ndarray | slice) -> "Queue":
        """Some of the entries: bool [Q], places or a slice."""
        return Queue(
            self.rows[chosen_Q],
            self.reasons[chosen_Q],
            self.groups[chosen_Q],
            self.suggestions[chosen_Q],
            self.labels[chosen_Q],
        )

    def counts(self) -> dict[str, int]:
        """How many entries there are for each reason."""
        return {reason: int((self.reasons == reason).sum()) for reason in REASONS}


def _part(
    reason: str,
    rows: np.ndarray,
    groups: np.ndarray,
    suggestions: np.ndarray,
    labels: np.ndarray | None = None,
) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "row": rows.astype(np.int64),
            "reason": _all(reason, len(rows)),
            "group": groups[: len(rows)].astype(np.int64),
            "suggestion": suggestions,
            "label": _all(None, len(rows)) if labels is None else labels,
        }
    )


def _all(value: str | None, count: int) -> np.ndarray:
    return np.full(count, value, object)


def _keep_or(remove_M: np.ndarray) -> np.ndarray:
    return np.where(remove_M, REMOVE, KEEP).astype(object)


def _of_outliers(votes: Votes, rows: np.ndarray) -> np.ndarray:
    return _keep_or(~votes.right[rows])


def suggested(votes: Votes, rows: np.ndarray) -> np.ndarray:
    """The label that the neighbors of each row vote for, object; None where none votes."""
    names = np.array([*votes.names, None], object)
    return names[np.where(votes.winner[rows] == UNLABELED, len(votes.names), votes.winner[rows])]


# -- decisions --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Undo:
    """How things were before a decision."""

    before: dict[str, Review | None]

    def apply(self, notes: Notes) -> None:
        """Put the earlier decisions, or none, back."""
        same: dict[tuple[str | None, str | None], list[str]] = {}
        for id, review in self.before.items():
            key = (None, None) if review is None else (review.decision, review.label)
            same.setdefault(key, []).append(id)
        for (decision, label), ids in same.items():
            notes.review(ids, decision, label, {label})


def decide(
    notes: Notes,
    ids: Iterable[str],
    decision: str | None,
    label: str | None = None,
    known: Container[str | None] = (),
) -> Undo:
    """`Notes.review`, with the way back."""
    return decide_all(notes, [(list(ids), decision, label)], known)


def decide_all(
    notes: Notes,
    several: Sequence[tuple[Sequence[str], str | None, str | None]],
    known: Container[str | None] = (),
) -> Undo:
    """Several decisions, each of ids, decision and label, with one way back.

    `known`: as of `Notes.review`. Where one of them cannot be, none is taken.
    """
    for _, decision, label in several:
        right_label(decision, label, known)
    before = notes.reviews()
    for ids, decision, label in several:
        notes.review(ids, decision, label, known)
    return Undo({id: before.get(id) for ids, _, _ in several for id in ids})


def follow_suggestions(notes: Notes, ids: Sequence[str], queue: Queue) -> Undo:
    """Decide all entries as suggested that nothing was decided about; `ids` of them, [Q]."""
    known = notes.reviews()
    open_Q = [place for place, id in enumerate(ids) if id not in known]
    same: dict[tuple[str, str | None], list[str]] = {}
    for place in open_Q:
        same.setdefault((queue.suggestions[place], queue.labels[place]), []).append(ids[place])
    several = [(those, decision, label) for (decision, label), those in same.items()]
    return decide_all(notes, several, {label for _, label in same})


# -- everything of one gallery ----------------------------------------------------------------


@dataclass(frozen=True)
class Findings:
    """What is computed once for a gallery, for any thresholds."""

    alike: Alike
    alone: Suspects
    doubtful: Suspects
    votes: Votes

    @classmethod
    def of(cls, gallery: Gallery, progress: Progress = silent) -> "Findings":
        """Read it off the stored neighbor graph."""
        alike = Alike.of(gallery, progress)
        votes = count_votes(*gallery.neighbors(), gallery.images["label"], progress=progress)
        gone_N = gallery.images["gone"].to_numpy(bool)
        return cls(alike, outliers(gallery), disagreements(votes, gone_N), votes)


@dataclass(frozen=True)
class Grouped:
    """The duplicates at one threshold."""

    threshold: float
    groups: Groups
    leaks: Groups  # those of more than one split
    conflicts: int  # how many have images with different labels

    @classmethod
    def at(cls, alike: Alike, threshold: float, images: pd.DataFrame) -> "Grouped":
        """Group the images that are at least this alike."""
        groups = alike.groups(threshold)
        leaks = groups.where(spans(groups, codes_of(images["split"])) > 1)
        conflicts = int((spans(groups, codes_of(images["label"])) > 1).sum())
        return cls(threshold, groups, leaks, conflicts)


def why(
    queue: Queue, place: int, grouped: Grouped, findings: Findings, images: pd.DataFrame
) -> str:
    """In a few words, why an image stands in the queue."""
    row, reason = int(queue.rows[place]), queue.reasons[place]
    if reason in (LEAK, DUPLICATE):
        groups, group = members(queue, place, grouped)
        others = groups.rows_of(group)
        others = others[others != row]
        if reason == LEAK:
            splits = images["split"].iloc[others]
            elsewhere = (splits.notna() & (splits != images["split"].iat[row])).to_numpy(bool)
            names = ", ".join(dict.fromkeys(map(str, splits[elsewhere])))
            return f"also in {names}: {_short(images, others[elsewhere])}"
        how = "an equal file" if groups.equal[group] else f"alike ({groups.weakest[group]:.4f})"
        return f"{how}: {_short(images, others)}"
    votes = findings.votes
    if reason == LABEL:
        share, own = float(votes.winner_share[row]), float(votes.own[row])
        return f"neighbors vote {votes.names[votes.winner[row]]} {share:.0%}, its own {own:.0%}"
    if reason == OUTLIER:
        at = int(np.flatnonzero(findings.alone.rows == row)[0])
        value = float(findings.alone.values[at])
        return f"{value:.4f} to its nearest, half are above {findings.alone.high:.4f}"
    return ""


def members(queue: Queue, place: int, grouped: Grouped) -> tuple[Groups, int]:
    """The groups that an entry's group is one of, and which."""
    groups = grouped.leaks if queue.reasons[place] == LEAK else grouped.groups
    return groups, int(queue.groups[place])


def _short(images: pd.DataFrame, rows: np.ndarray) -> str:
    name = str(images["id"].iat[int(rows[0])]).rsplit("/", 1)[-1]
    return name if len(rows) == 1 else f"{name} and {len(rows) - 1:,} more"

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

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from dino_core.gallery.agreement import UNLABELED, Votes
from dino_core.gallery.duplicates import NO_CODE, Groups, leaked, to_remove
from dino_core.gallery.notes import Notes, Review

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

    def where(self, chosen_Q: np.ndarray) -> "Queue":
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
            notes.review(ids, decision, label)


def decide(
    notes: Notes, ids: Iterable[str], decision: str | None, label: str | None = None
) -> Undo:
    """`Notes.review`, with the way back."""
    ids = list(ids)
    known = notes.reviews()
    notes.review(ids, decision, label)
    return Undo({id: known.get(id) for id in ids})


def follow_suggestions(notes: Notes, ids: Sequence[str], queue: Queue) -> Undo:
    """Decide all entries as suggested that nothing was decided about; `ids` of them, [Q]."""
    known = notes.reviews()
    open_Q = [place for place, id in enumerate(ids) if id not in known]
    same: dict[tuple[str, str | None], list[str]] = {}
    for place in open_Q:
        same.setdefault((queue.suggestions[place], queue.labels[place]), []).append(ids[place])
    for (decision, label), those in same.items():
        notes.review(those, decision, label)
    return Undo({ids[place]: None for place in open_Q})

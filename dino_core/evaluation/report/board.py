"""From files to a board: which results can be compared, which rows and columns that makes.

Figures share a column only where they were measured on the same data with the same settings, as
hashes tell, so whatever stands in one column can be compared. The same is asked of what was
published: a figure that was measured otherwise is no row of the table.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from dino_core.errors import UserError
from dino_core.evaluation.published import Published, other_settings, published, recognized
from dino_core.evaluation.report.protocols import (
    PROTOCOLS,
    Figure,
    Protocol,
    described,
    figures_of,
)
from dino_core.evaluation.report.settings import heading
from dino_core.evaluation.report.values import at, number, sentences
from dino_core.evaluation.results import UNTRAINED
from dino_core.files import read_json

BASELINES = {"random_init": UNTRAINED, "pixels": "raw pixels"}
WRITERS = "name files that `evaluate.py ... --json FILE` wrote"
At = tuple[int, int]  # a column: of which group, which figure


@dataclass(frozen=True)
class Record:
    """One file: a model under a protocol."""

    path: Path
    protocol: str
    values: Mapping[str, Any]

    @property
    def model(self) -> tuple[str, str]:
        """Spec and hash."""
        return str(self.values["model"]), str(self.values.get("model_hash", ""))

    @property
    def described(self) -> Protocol:
        return described(self.protocol)

    @property
    def figures(self) -> tuple[Figure, ...]:
        """The columns that this result can fill."""
        return figures_of(self.protocol, self.values)

    @property
    def settings(self) -> dict[str, Any]:
        """What makes its figures another thing than others of the protocol."""
        names = self.described.settings
        if self.values.get("map") == "attention":  # nothing is cut
            names = tuple(name for name in names if name != "tau")
        return {name: self.values.get(name) for name in names}

    @property
    def data(self) -> str:
        """The images judged, as they were named."""
        found = (self.values.get(name) for name in ("test", "data"))
        return next((one for one in found if isinstance(one, str) and one), "")

    @property
    def key(self) -> str:
        """The same for results that can be compared: protocol, hashes of all data, settings."""
        hashes = {
            name: value
            for name, value in self.values.items()
            if name.endswith("_hash") and name != "model_hash"
        }
        data = hashes or {name: self.values.get(name) for name in ("train", "test", "data")}
        return repr((self.protocol, sorted(data.items()), self.settings))

    @property
    def baselines(self) -> dict[str, Mapping[str, Any]]:
        """What the model has to beat, by name."""
        found = {name: self.values.get(key) for key, name in BASELINES.items()}
        return {name: values for name, values in found.items() if isinstance(values, Mapping)}

    @property
    def notes(self) -> list[str]:
        notes = sentences(self.values.get("notes"))
        for name, values in self.baselines.items():
            others = [note for note in sentences(values.get("notes")) if note not in notes]
            notes += [f"{name}: {note}" for note in others]
        return notes

    @property
    def leads(self) -> dict[Figure, int]:
        """Where the model can be held against its untrained twin: 1 ahead, 0 level, -1 behind.

        The same number of labels counts once: "1 a class" and "1 %" may be the same labels.
        """
        twin = self.baselines.get(UNTRAINED, {})
        leads: dict[Figure, int] = {}
        amounts: set[float] = set()
        for figure in self.figures:
            lead, amount = figure.lead(self.values, twin), number(at(self.values, figure.amount))
            if lead is None or amount in amounts:
                continue
            leads[figure] = lead
            amounts |= set() if amount is None else {amount}
        return leads

    @property
    def behind(self) -> list[str]:
        """Figures in which the untrained twin is ahead: `IoU 20.7 against 31.2 %`."""
        twin = self.baselines.get(UNTRAINED, {})
        told = []
        for figure in [one for one, lead in self.leads.items() if lead < 0]:
            own, other = figure.of(self.values) or 0.0, figure.of(twin) or 0.0
            pair = f"{figure.said or figure.title} {figure.text(own)} against {figure.text(other)}"
            told.append(f"{pair} {figure.unit}".rstrip())
        return told

    @property
    def odd(self) -> list[str]:
        """Sentences about figures that are no numbers."""
        every = {"": self.values} | {
            key: self.values[key] for key, name in BASELINES.items() if name in self.baselines
        }
        return [
            f"{self.path.name}: {'/'.join(filter(None, (key, *figure.path)))} is no finite number, "
            "so it is left out"
            for key, values in every.items()
            for figure in self.figures
            if (value := at(values, figure.path)) is not None and number(value) is None
        ]

    def with_baselines_of(self, other: "Record") -> tuple["Record", list[str]]:
        """This one with what it lacks to be held against and `other` has; and which that is."""
        lent = {
            key: other.values[key]
            for key, name in BASELINES.items()
            if name in other.baselines and name not in self.baselines
        }
        return replace(self, values={**self.values, **lent}), [BASELINES[key] for key in lent]


@dataclass(frozen=True)
class Group:
    """Results that can be compared: one protocol, data and settings, one result a model."""

    results: list[Record]
    settings: str  # in words, or ""

    @property
    def first(self) -> Record:
        return self.results[0]

    @cached_property
    def figures(self) -> list[Figure]:
        """Columns that at least one result fills."""
        every = dict.fromkeys(figure for result in self.results for figure in result.figures)
        return [one for one in every if any(one.of(r.values) is not None for r in self.results)]

    @property
    def data(self) -> str:
        """The data's name, short; "" where no file says it."""
        spec = self.first.data
        if ":" in spec or not spec:
            return spec
        return "/".join([part for part in PurePosixPath(spec).parts if part != "/"][-2:])

    @property
    def conditions(self) -> str:
        """Data and settings."""
        return ", ".join(filter(None, (self.data, self.settings)))

    @property
    def published_data(self) -> str | None:
        """The published data set that these results are of, if any."""
        return recognized(self.first.protocol, self.first.values)

    @cached_property
    def references(self) -> list[tuple[Published, str]]:
        """What was published on these very data, each with the settings that differ from ours.

        "" where none does: then the figure can be held against these.
        """
        if self.published_data is None:
            return []
        return [
            (entry, "; ".join(self._differences(entry)))
            for entry in published(self.first.protocol, self.published_data)
        ]

    def _differences(self, entry: Published) -> list[str]:
        told = (one for result in self.results for one in other_settings(entry, result.values))
        return list(dict.fromkeys(told))

    @property
    def near(self) -> list[Published]:
        """What was published on these very data with these settings."""
        return [entry for entry, differs in self.references if not differs]

    @property
    def otherwise(self) -> dict[str, list[Published]]:
        """What was published on these very data, by the settings that differ."""
        found: dict[str, list[Published]] = {}
        for entry, differs in self.references:
            if differs:
                found.setdefault(differs, []).append(entry)
        return found


@dataclass(frozen=True)
class Row:
    """A line of the table: a model, what it has to beat, or what was published."""

    name: str
    kind: str  # "model", "baseline" or "published"
    values: dict[At, float] = field(default_factory=dict)
    deviations: dict[At, float] = field(default_factory=dict)

    def fill(self, g: int, group: Group, values: Mapping[str, Any]) -> None:
        for f, figure in enumerate(group.figures):
            value, deviation = figure.of(values), figure.spread(values)
            if value is not None:
                self.values[g, f] = value
            if deviation is not None:
                self.deviations[g, f] = deviation


@dataclass(frozen=True)
class Board:
    """Everything that table and page show."""

    groups: list[Group]
    rows: list[Row]
    notes: list[str]

    @property
    def columns(self) -> list[tuple[At, Figure]]:
        return [
            ((g, f), figure)
            for g, group in enumerate(self.groups)
            for f, figure in enumerate(group.figures)
        ]

    def best(self, column: At, figure: Figure) -> float | None:
        """The best value of the models in a column, where several can be ordered."""
        values = [
            row.values[column] for row in self.rows if row.kind == "model" and column in row.values
        ]
        if len(values) < 2 or not figure.better:
            return None
        return max(values, key=lambda value: value * figure.better)

    def twin(self, row: Row) -> Row | None:
        """The untrained twin's row, which is among those right below a model's."""
        if row.kind != "model":
            return None
        for below in self.rows[self.rows.index(row) + 1 :]:
            if below.kind != "baseline":
                return None
            if below.name == UNTRAINED:
                return below
        return None

    @property
    def behind(self) -> list[str]:
        """For each model that its untrained twin beats somewhere: where; then what that means."""
        every = [(group, result) for group in self.groups for result in group.results]
        names = names_of([result for _, result in every])
        told, meaning = [], set()
        for name in [row.name for row in self.rows if row.kind == "model"]:
            beaten = [
                (group.first.described, result)
                for group, result in every
                if names[result.model] == name and result.behind
            ]
            meaning |= {
                protocol.masks
                for protocol, result in beaten
                if 2 * len(result.behind) > len(result.leads)
            }
            where = [f"{protocol.title} ({'; '.join(one.behind)})" for protocol, one in beaten]
            told += [f"{name} is behind its untrained twin in {', '.join(where)}."] if where else []
        return told + [sentence for kind, sentence in MEANING.items() if kind in meaning]


MEANING = {  # of being behind in most figures of a protocol, on masks and elsewhere
    True: (
        "On masks that happens to models trained briefly, or on images without such objects: they "
        "look at what surrounds the objects, while what an untrained network makes of an image "
        "still follows its colors and edges."
    ),
    False: "Where classes or correspondence are asked for, training has not helped there.",
}


def names_of(results: Sequence[Record]) -> dict[tuple[str, str], str]:
    """What models are called, by spec and hash: the spec, with its hash where two have the same."""
    models = list(dict.fromkeys(result.model for result in results))
    specs = [spec for spec, _ in models]
    return {
        (spec, digest): spec if specs.count(spec) == 1 else f"{spec} ({digest[:8]})"
        for spec, digest in models
    }


def board_of(files: Sequence[Path]) -> Board:
    """The board of what `scripts/evaluate.py ... --json FILE` wrote.

    A folder stands for the .json files in it. Raises `UserError` for no files, and for one that is
    missing or holds no figures.
    """
    if not files:
        raise UserError(f"no figures given; {WRITERS}")
    results = [_record(path) for path in found_in(files)]
    notes = [sentence for result in results for sentence in result.odd]
    of_key: dict[str, dict[tuple[str, str], Record]] = {}
    for result in results:
        others = of_key.setdefault(result.key, {})
        if result.model in others:
            result, note = _merged(others[result.model], result)
            notes.append(note)
        others[result.model] = result
    order = list(PROTOCOLS)
    ordered = sorted(
        (list(one.values()) for one in of_key.values()),
        key=lambda one: order.index(one[0].protocol) if one[0].protocol in order else len(order),
    )
    firsts = [one[0] for one in ordered]
    groups = [Group(one, _heading(one[0], firsts)) for one in ordered]
    return Board(groups, [*_model_rows(groups, results), *_published_rows(groups)], notes)


def found_in(files: Sequence[Path]) -> list[Path]:
    """The files, for a folder the .json files in it by name; `UserError` where it has none."""
    found: list[Path] = []
    for path in map(Path, files):
        inside = sorted(path.glob("*.json")) if path.is_dir() else [path]
        if not inside:
            raise UserError(f"{path}: this folder holds no .json file; {WRITERS}")
        found += inside
    return found


def _merged(earlier: Record, later: Record) -> tuple[Record, str]:
    """The later of two results of one thing, with baselines of the other that it lacks; a note."""
    first, last = earlier.path, later.path
    one, two = (first.name, last.name) if first.name != last.name else (str(first), str(last))
    merged, lent = later.with_baselines_of(earlier)
    note = f"{one} and {two} both hold {later.described.title} of {later.model[0]}: "
    note += f"the figures of {two} count"
    return merged, note + (f"; those of {' and '.join(lent)} are from {one}" if lent else "")


def _read(path: Path) -> Any:
    try:
        return read_json(path)
    except (UserError, RecursionError):
        if path.exists():  # why it is no JSON helps nobody
            raise UserError(f"{path}: cannot be read as JSON; {WRITERS}") from None
        raise


def _record(path: Path) -> Record:
    values = _read(path)
    if not isinstance(values, dict) or not all(
        isinstance(values.get(name), str) and values[name] for name in ("protocol", "model")
    ):
        raise UserError(f"{path}: holds no figures of a model; {WRITERS}")
    return Record(path, values["protocol"], values)


def _heading(result: Record, others: Sequence[Record]) -> str:
    """The settings of a result, beside other results of its protocol."""
    same = [other.settings for other in others if other.protocol == result.protocol]
    return heading(result.settings, same)


def _model_rows(groups: Sequence[Group], results: Sequence[Record]) -> list[Row]:
    """Each model, and below it what it has to beat."""
    rows: list[Row] = []
    for model, called in names_of(results).items():
        own = Row(called, "model")
        beaten = {name: Row(name, "baseline") for name in BASELINES.values()}
        for g, group in enumerate(groups):
            for result in group.results:
                if result.model == model:
                    own.fill(g, group, result.values)
                    for name, values in result.baselines.items():
                        beaten[name].fill(g, group, values)
        rows += [own, *(row for row in beaten.values() if row.values)]
    return rows


def _published_rows(groups: Sequence[Group]) -> list[Row]:
    rows: dict[str, Row] = {}
    for g, group in enumerate(groups):
        for entry in group.near:
            row = rows.setdefault(entry.model, Row(entry.model, "published"))
            row.fill(g, group, entry.figures)
    return list(rows.values())


def sources(entries: Sequence[Published]) -> list[str]:
    """Where figures were published, each once."""
    return list(dict.fromkeys(entry.source for entry in entries))

"""Training runs: start one, watch several, stop and resume them. A closed tab loses nothing.

A run is a process of its own with its state on disk; this page, from any browser, only looks at it.
"""

import functools
import html
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from dino_core.errors import UserError
from dino_core.gallery.selection import category_colors
from dino_core.runs import ALIVE, Run
from dino_core.training.curves import Curves
from dino_core.training.durations import spoken
from dino_core.training.launch import Overview, begun_runs, last_lines, overview, resume, stop
from dino_core.usage import Watch
from explore import address, permission, running, words
from explore.here import Here

EVERY = 2.0  # seconds between looks at runs that are alive
RESTING = 6.0  # and at others, which may be resumed
CHARTS = {
    "loss": "Loss, nats",
    "knn": "k-NN accuracy, %",
    "rankme": "RankMe, dimensions",
    "teacher_entropy": "Teacher entropy, nats",
    "effective_rank": "Effective rank in a batch",
    "images_per_second": "Images per second",
    "teacher_temp": "Teacher temperature",
    "momentum": "Teacher momentum",
    "lr": "Learning rate",
}
ENDED = {"dead": "gone without a word: killed, or the machine went down"}  # in place of the state
LINES = 40  # of the log
WARNINGS = 5
QUIET = 120.0  # seconds without a heartbeat that are worth a word


def show(here: Here) -> None:
    """Draw the page."""
    runs = {run.name: run for run in begun_runs(here.root)}
    with here.bar:
        view = address.segments("View", "view", ["Watch", "Start a run"])
    if view == "Start a run":
        running.form(here)
        return
    if not runs:
        st.html(
            "<h2>No runs yet</h2><p class='facts'>A run trains DINO on a folder of images, and all "
            f"it learns is kept in <code>{html.escape(str(here.root / 'runs'))}</code>. Start one "
            "here, or in a terminal: <code>python scripts/train.py --data FOLDER --out runs/mine"
            "</code>.</p>"
        )
        st.button("Start a run", on_click=address.change, kwargs={"view": "Start a run"})
        return
    newest = max(runs.values(), key=_last_word).name
    chosen = address.several("Runs", "of", list(runs), placeholder=f"Newest: {newest}")
    watched = [runs[name] for name in chosen or [newest]]
    alive = any(run.status().get("state") in ALIVE for run in watched)
    permission.gate("Stopping and resuming runs")
    st.fragment(_watch, run_every=EVERY if alive else RESTING)(here, watched, alive)


def _last_word(run: Run) -> float:
    return float(run.status().get("heartbeat", 0.0))


def _watch(here: Here, runs: list[Run], was_alive: bool) -> None:
    """How the runs stand, and their curves over each other."""
    views = [overview(run) for run in runs]
    if was_alive != any(view.state in ALIVE for view in views):
        st.rerun()  # to look at another pace
    colors = [category_colors(len(runs), dark=dark) for dark in (False, True)]
    for place, (run, view) in enumerate(zip(runs, views, strict=True)):
        _card(here, run, view, f"light-dark({colors[0][place]},{colors[1][place]})")
    curves = [_curves(str(run.path)) for run in runs]
    for one in curves:
        one.update()
    _charts(runs, curves)
    for run in runs:
        with st.expander(f"Log of {run.name}"):
            st.code("\n".join(_log(run)) or "It has said nothing yet.", language=None)


@functools.lru_cache(64)
def _curves(path: str) -> Curves:
    return Curves(Run(path))


@functools.lru_cache(16)
def _usage(pid: int, started: Any, boot: str) -> Watch:
    return Watch({"pid": pid, "started": started, "boot": boot})


# -- one run ----------------------------------------------------------------------------------


def _card(here: Here, run: Run, view: Overview, color: str) -> None:
    """Name, state, progress, what it uses, warnings, and what can be done with it."""
    with st.container(key=f"run_{run.name}", border=True):
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            st.html(
                f"<h3 class='run'><i style='background:{color}'></i>{html.escape(run.name)} "
                f"<small>{html.escape(_standing(view))}</small></h3>"
            )
            _buttons(here, run, view)
        if view.steps and view.state in ALIVE:
            st.progress(min(view.step / view.steps, 1.0))
        st.html(f"<p class='facts'>{html.escape(' · '.join(_facts(run, view)))}</p>")
        if view.reason and view.state in ("failed", "stopped"):
            st.html(f"<p class='warning'>{html.escape(_sentence(view.reason))}</p>")
        for warning in run.warnings()[-WARNINGS:]:
            st.html(
                f"<p class='warning'>Step {warning['step']:,}: "
                f"{html.escape(str(warning['warning']))}</p>"
            )


def _standing(view: Overview) -> str:
    words = [ENDED.get(view.state, view.state or "never began")]
    if view.steps:
        words.append(f"step {view.step:,} of {view.steps:,}")
    if view.seconds_left:
        words.append(f"{spoken(view.seconds_left)} left")
    if view.state in ALIVE and view.silence > QUIET:
        words.append(f"silent for {spoken(view.silence)}")
    return ", ".join(words)


def _facts(run: Run, view: Overview) -> list[str]:
    facts = []
    if view.loss is not None:
        facts.append(f"loss {view.loss:.3f}")
    if view.knn is not None:
        facts.append(f"k-NN {view.knn:.1f} %")
    if view.rankme is not None:
        facts.append(f"RankMe {view.rankme:.1f}")
    if run.exists():
        recipe = run.recipe()
        facts.append(f"{recipe['backbone']['architecture']} on {recipe['data']}")
    return facts + _uses(run, view)


def _uses(run: Run, view: Overview) -> list[str]:
    """What it takes of this machine, while it runs here."""
    process = run.status().get("process", {})
    if view.state not in ALIVE or "pid" not in process:
        return []
    seen = _usage(process["pid"], process.get("started"), process.get("boot", "")).look()
    if seen is None:
        return []
    facts = [f"{seen.cores:.1f} cores", f"{seen.memory / 1e9:.1f} GB"]
    return facts + [
        f"{gpu.name} {gpu.busy:.0f} % busy, {gpu.used / 1024:.0f} of {gpu.total / 1024:.0f} GB"
        for gpu in seen.gpus
    ]


def _sentence(reason: str) -> str:
    return reason[:1].upper() + reason[1:]


def _buttons(here: Here, run: Run, view: Overview) -> None:
    name, pressed = run.name, False
    if not permission.may_act():
        pass
    elif view.state in ALIVE:
        pressed = st.button("Stop", key=f"stop {name}", on_click=_do, args=(here, stop, run))
    elif view.state and view.state != "finished":
        pressed = st.button("Resume", key=f"resume {name}", on_click=_do, args=(here, _resume, run))
    if (run.path / "probes").is_dir():
        pressed |= st.button(
            "See what it learned", key=f"see {name}", on_click=address.go, args=("emergence",),
            kwargs={"run": name},
        )  # fmt: skip
    if pressed:
        st.rerun(scope="app")  # a click here draws only this part of the page again
    if error := st.session_state.pop(f"error {name}", None):
        words.error(error)


def _resume(run: Run, root: Path) -> None:
    resume(run, root=root, patience=0.0)


def _do(here: Here, what: Any, run: Run) -> None:
    """Stop or resume, where whoever looks may; what goes wrong stands beside the run."""
    try:
        permission.check()
        what(run, here.root) if what is _resume else what(run)
    except UserError as error:
        st.session_state[f"error {run.name}"] = str(error)


def _log(run: Run) -> list[str]:
    path = run.path / "log.txt"
    if not path.is_file():
        path = run.path / "output.txt"
    return last_lines(path)[-LINES:]


# -- curves -----------------------------------------------------------------------------------


def _charts(runs: list[Run], curves: list[Curves]) -> None:
    """Small charts, three in a row, of what any of the runs has logged."""
    logged = [name for name in CHARTS if any(name in one.names for one in curves)]
    if not logged:
        st.caption("Nothing was logged yet: a run first loads, plans and rehearses.")
        return
    for start in range(0, len(logged), 3):
        for column, name in zip(st.columns(3), logged[start : start + 3], strict=False):
            with column:
                _chart(name, runs, curves)


def _chart(name: str, runs: list[Run], curves: list[Curves]) -> None:
    rows = [
        {"run": run.name, "step": step, "value": value}
        for run, one in zip(runs, curves, strict=True)
        for step, value in one.points(name)
    ]
    colors = category_colors(len(runs), dark=st.context.theme.type == "dark")
    color = {
        "field": "run",
        "type": "nominal",
        "scale": {"domain": [run.name for run in runs], "range": colors},
        "legend": None,
    }
    number = {"type": "quantitative", "scale": {"zero": False}}
    st.html(f"<h3>{html.escape(CHARTS[name])}</h3>")
    st.vega_lite_chart(
        pd.DataFrame(rows),
        {
            "height": 150,
            "mark": {"type": "line", "point": len(rows) <= 40, "strokeWidth": 2, "tooltip": True},
            "encoding": {
                "x": {"field": "step", "title": "step", "axis": {"labelFlush": True}} | number,
                "y": {"field": "value", "title": None} | number,
                "color": color,
            },
        },
        width="stretch",
        key=f"chart {name}",
    )

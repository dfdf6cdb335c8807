"""stream.js: whatever the order of question, answer and end of the stream, each answer is heard."""

from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "apps" / "assets" / "stream.js"

# A server of made-up streams, told what to do step by step, behind a client as simple as Gradio's:
# it opens a stream with a question if it believes that none is open.
SCENE = """async (steps) => {
  const streams = [], held = {}, heard = [], opened = () => streams.length;
  const event = (message) => new TextEncoder().encode(`data: ${JSON.stringify(message)}\\n\\n`);
  const server = async (request, options) => {
    const url = String(request.url ?? request);
    if (url.endsWith("/queue/join")) {
      const number = JSON.parse(options.body);
      await new Promise((go) => { held[number] = go; });
      return Response.json({event_id: number});
    }
    let controller;
    const body = new ReadableStream({start: (given) => { controller = given; }});
    streams.push(controller);
    return new Response(body, {headers: {"Content-Type": "text/event-stream"}});
  };
  const fetch = unbroken(server);
  let open = false;
  async function listen() {
    open = true;
    const {body} = await fetch(new Request(`${origin}/queue/data?session_hash=a`));
    const reader = body.pipeThrough(new TextDecoderStream()).getReader();
    for (let part; !(part = await reader.read()).done; ) {
      for (const text of part.value.split("\\n\\n").filter(Boolean)) {
        const message = JSON.parse(text.slice(5));
        if (message.msg === "close_stream") open = false;
        else heard.push(message.event_id);
      }
    }
  }
  const origin = "http://127.0.0.1";
  const ask = async (number) => {
    await fetch(`${origin}/queue/join`, {method: "POST", body: JSON.stringify(number)});
    if (!open) listen();
  };
  const rest = () => new Promise((go) => setTimeout(go, 20));
  for (const [what, number] of steps) {
    if (what === "ask") ask(number);
    if (what === "joined") held[number]();
    const last = streams.at(-1);
    if (what === "answer") last.enqueue(event({msg: "process_completed", event_id: number}));
    if (what === "close") {
      last.enqueue(event({msg: "close_stream"}));
      last.close();
    }
    await rest();
  }
  return {heard, open, streams: opened()};
}"""
FIRST = [("ask", 1), ("joined", 1)]


@pytest.fixture
def play(page: Any) -> Any:
    page.goto("data:text/html,<p>no page</p>")
    page.evaluate(f"() => {{ {SCRIPT.read_text(encoding='utf-8')} }}")
    return lambda *steps: page.evaluate(SCENE, [list(step) for step in steps])


def test_a_stream_that_ends_in_peace_is_ended(play: Any) -> None:
    assert play(*FIRST, ("answer", 1), ("close", 0)) == {"heard": [1], "open": False, "streams": 1}


def test_a_question_asked_while_the_stream_ends_is_answered(play: Any) -> None:
    """The server has ended the stream; the client joins before it reads that."""
    steps = [*FIRST, ("ask", 2), ("answer", 1), ("close", 0), ("joined", 2), ("answer", 2)]
    assert play(*steps, ("close", 0)) == {"heard": [1, 2], "open": False, "streams": 2}


def test_an_answer_that_comes_before_its_number_is_known_holds_nothing_open(play: Any) -> None:
    steps = [*FIRST, ("ask", 2), ("answer", 1), ("answer", 2), ("joined", 2), ("close", 0)]
    assert play(*steps) == {"heard": [1, 2], "open": False, "streams": 1}


def test_after_the_end_the_next_question_opens_a_stream(play: Any) -> None:
    steps = [*FIRST, ("answer", 1), ("close", 0), ("ask", 2), ("joined", 2), ("answer", 2)]
    assert play(*steps, ("close", 0)) == {"heard": [1, 2], "open": False, "streams": 2}


def test_without_it_that_answer_is_lost(play: Any, page: Any) -> None:
    """What the other tests rest on: the client above has the fault that is mended here."""
    page.evaluate("() => { globalThis.unbroken = (fetch) => fetch; }")
    steps = [*FIRST, ("ask", 2), ("answer", 1), ("joined", 2), ("close", 0), ("answer", 2)]
    with pytest.raises(Exception, match=r"enqueue|closed"):
        play(*steps)

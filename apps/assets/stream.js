/* stream.js: no answer is lost between two streams of answers.
 *
 * Gradio's client hears all answers over one event stream. The server ends it ("close_stream") when
 * the page has no question left, and the client opens another one with its next question, if it
 * knows by then that the last has ended. A question asked while that word is still on its way finds
 * the stream open, and its answer is never heard: the page waits for good. Loaded before the client,
 * this stands between it and `fetch`: where a question is left when the server ends the stream, the
 * next one is opened at once, and read on as the same.
 */

globalThis.unbroken ??= (fetch) => {
  const asked = new Set(); // questions without an answer, by the server's number
  const asking = new Set(); // requests that are on their way to be one
  const early = new Set(); // answered before their number was known here

  /** Ask a question; its number is known before the client goes on. */
  function join(...request) {
    const sent = fetch(...request).then(async (response) => {
      const number = response.ok ? (await response.clone().json()).event_id : undefined;
      if (number !== undefined && !early.delete(number)) asked.add(number);
      return response;
    });
    asking.add(sent);
    sent.catch(() => {}).finally(() => asking.delete(sent));
    return sent;
  }

  function hear({ msg, event_id: number }) {
    if (msg !== "process_completed") return;
    if (!asked.delete(number)) early.add(number);
  }

  /** The events of a response, each whole and with what it says. */
  async function* events(response) {
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let rest = "", part; !(part = await reader.read()).done; ) {
      const texts = (rest + part.value).split("\n\n");
      rest = texts.pop();
      for (const text of texts) yield [`${text}\n\n`, said(text)];
    }
  }

  function said(text) {
    try {
      return JSON.parse(text.replace(/^data:/, ""));
    } catch {
      return {}; // a comment, or what is not for us
    }
  }

  /** Read streams one after the other, as long as one is ended too early, into one. */
  async function* all(request, response) {
    for (let over = false; !over; ) {
      over = true;
      for await (const [text, event] of events(response)) {
        hear(event);
        if (event.msg === "close_stream") {
          await Promise.allSettled(asking);
          over = asked.size === 0;
          if (!over) break;
        }
        yield text;
      }
      if (!over) response = await fetch(request.clone());
    }
  }

  async function listen(request) {
    const response = await fetch(request.clone());
    if (!response.ok) return response;
    const texts = all(request, response), encoder = new TextEncoder();
    const body = new ReadableStream({
      async pull(controller) {
        const { done, value } = await texts.next();
        if (done) controller.close();
        else controller.enqueue(encoder.encode(value));
      },
      cancel: () => texts.return(),
    });
    return new Response(body, { status: response.status, headers: response.headers });
  }

  return (...request) => {
    const { pathname } = new URL(request[0].url ?? request[0], location.href);
    if (pathname.endsWith("/queue/join")) return join(...request);
    if (pathname.endsWith("/queue/data")) return listen(new Request(...request));
    return fetch(...request);
  };
};

if (!globalThis.fetch.unbroken) {
  globalThis.fetch = Object.assign(globalThis.unbroken(globalThis.fetch.bind(globalThis)), { unbroken: true });
}

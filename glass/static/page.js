// Draws what the server sends, and decides nothing. Preact makes a text of each value: none becomes
// HTML, whatever is in it.
import { html, render, useEffect, useLayoutEffect, useRef, useState } from "/static/preact/standalone.module.js";

// Eight colours for workers; their names are there as well.
const colour = (worker) => (worker === null ? "" : `w${Number(worker) % 8}`);
// A long name may be broken after each _.
const breakable = (name) => name.split(/(?<=_)/).map((part) => html`${part}<wbr />`);
const thousands = (number) => number.toLocaleString("en");

function Page() {
  const [view, setView] = useState(null);
  const [place, setPlace] = useState(null); // a moment, and so many steps on from it; null: now
  const [task, setTask] = useState(null);
  const [said, setSaid] = useState("");
  const [lost, setLost] = useState(false); // nobody answers
  const go = (number) => setPlace(view && number >= view.length ? null : { moment: number, steps: 0 });
  const step = (way) => setPlace((place) => (place ? { ...place, steps: place.steps + way } : way < 0 ? { moment: view.moment, steps: way } : null));

  useEffect(() => {
    const about = task === null ? "" : `task=${encodeURIComponent(task)}`;
    if (place) {
      const asked = new AbortController(); // an answer that comes too late is not wanted
      const show = (seen) => {
        setView(seen);
        setLost(false);
        const there = seen.live ? null : place.steps ? { moment: seen.moment, steps: 0 } : place;
        setPlace((now) => (now === place ? there : now)); // a key may have been pressed since
      };
      fetch(`/view?at=${place.moment}&steps=${place.steps}&${about}`, { signal: asked.signal }).then((answer) => answer.json()).then(show).catch(() => asked.signal.aborted || setLost(true));
      return () => asked.abort();
    }
    const events = new EventSource(`/live?${about}`);
    events.onmessage = (event) => { setView(JSON.parse(event.data)); setLost(false); };
    events.onerror = () => setLost(true);
    return () => events.close();
  }, [place, task]);

  useEffect(() => {
    const onKey = (event) => {
      if (!view || event.ctrlKey || event.altKey || event.metaKey || event.target.matches("input:not([type=range])")) return;
      if (event.key === "ArrowLeft") step(-1);
      else if (event.key === "ArrowRight") step(1);
      else if (event.key === "Escape") setPlace(null);
      else return;
      event.preventDefault();
    };
    addEventListener("keydown", onKey);
    return () => removeEventListener("keydown", onKey);
  });

  const act = async (order) => {
    setSaid("…");
    const asked = fetch("/do", { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(order) });
    setSaid(await asked.then((answer) => answer.text()).catch(() => "no answer"));
  };

  if (!view) return html`<p class="hint">looking…</p>`;
  const buttons = view.live ? view.buttons : null; // null: it can only be looked at
  return html`
    <header>
      <h1>${view.title}</h1>
      ${view.live ? lost || !view.connected ? html`<span class="hint">○ not connected</span>` : html`<span class="live">● live</span>` : html`<button class="past" onClick=${() => setPlace(null)}>◀ the past: back to now (Esc)</button>`}
      ${view.limits.map((limit) => html`<span class="tag">queue ${limit.queue}: ${limit.running} of ${limit.most} running</span>`)}
      ${view.sampled && html`<span class="warning" title=${view.sampled}>what lasts less than 0.2 s is not seen: ${view.sampled}</span>`}
      ${view.note && html`<span class="warning">${view.note}</span>`}
      ${lost && html`<span class="warning">no answer: is make watch still running?</span>`}
      ${buttons && html`<${Control} names=${buttons.names} crash=${buttons.crash} act=${act} />`}
      <output title=${said}>${said}</output>
    </header>
    <main class=${view.live ? "" : "past"}>
      <section>
        <${Board} columns=${view.columns} task=${task} choose=${setTask} />
        ${view.grids.map((grid) => html`<${Grid} key=${grid.name} grid=${grid} />`)}
      </section>
      <aside>
        <h2>workers</h2>
        ${view.workers.length === 0 && html`<p class="hint">none</p>`}
        ${view.workers.map((worker) => html`<${Worker} key=${worker.id ?? `p${worker.process.pid}`} worker=${worker} live=${view.live && !view.held} control=${buttons !== null} act=${act} choose=${setTask} />`)}
        ${view.held && html`<${Held} held=${view.held} control=${buttons !== null} act=${act} />`}
        ${view.waits.length > 0 && html`<h2>who waits for whom</h2>`}
        ${view.waits.map((wait) => html`<${Wait} key=${wait.waiter.pid} wait=${wait} />`)}
        ${view.task ? html`<${Task} task=${view.task} moment=${view.moment} verbs=${buttons?.verbs ?? []} act=${act} choose=${setTask} />` : html`<p class="hint">Choose a task to see its row, its log and its tree.</p>`}
      </aside>
    </main>
    <${Story} view=${view} go=${go} step=${step} choose=${setTask} />`;
}

function Control({ names, crash, act }) {
  const [name, setName] = useState(Object.keys(names)[0] ?? "");
  const [input, setInput] = useState("");
  const enqueue = (event) => {
    event.preventDefault();
    act({ do: "enqueue", name, input: input || "null" });
  };
  return html`<form onSubmit=${enqueue}>
    <input aria-label="task" list="names" value=${name} onInput=${(event) => setName(event.target.value)} />
    <datalist id="names">${Object.keys(names).map((name) => html`<option value=${name} />`)}</datalist>
    <input aria-label="input, JSON" placeholder=${names[name] || "null"} title="${names[name] ?? ""}, as JSON" value=${input} onInput=${(event) => setInput(event.target.value)} />
    <button>enqueue</button>
    <button type="button" onClick=${() => act({ do: "worker", lease: "4" })}>start a worker</button>
    ${crash && html`<button type="button" class="danger" onClick=${() => act({ do: "crash" })}>crash Postgres</button>`}
  </form>`;
}

function Board({ columns, task, choose }) {
  const board = useRef(null);
  const places = useRef(new Map());
  // A card that is elsewhere now is shown where it was, and goes from there to where it is.
  useLayoutEffect(() => {
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    const now = new Map();
    for (const card of board.current.querySelectorAll("[data-id]")) {
      const place = { left: card.offsetLeft, top: card.offsetTop };
      const was = places.current.get(card.dataset.id);
      now.set(card.dataset.id, place);
      if (was && !still && was.left !== place.left) {
        const from = `translate(${was.left - place.left}px, ${was.top - place.top}px)`;
        card.animate([{ transform: from, zIndex: 2 }, { transform: "none", zIndex: 2 }], { duration: 300, easing: "ease-out" });
      }
    }
    places.current = now;
  });
  return html`<div class="board" ref=${board}>
    ${columns.map((column) => html`<div key=${column.status} class="column ${column.status}">
      <h2>${column.status} <b>${thousands(column.count)}</b></h2>
      ${column.cards.map((card) => html`<${Card} key=${card.id} card=${card} chosen=${card.id === task} choose=${choose} />`)}
      ${column.count > column.cards.length && html`<p class="hint">and ${thousands(column.count - column.cards.length)} more</p>`}
    </div>`)}
  </div>`;
}

function Card({ card, chosen, choose }) {
  const kinds = `card ${colour(card.worker)} ${chosen ? "chosen" : ""} ${card.orphaned ? "orphaned" : ""} ${card.ended ? "ended" : ""}`;
  return html`<button class=${kinds} data-id=${card.id} aria-pressed=${chosen} onClick=${() => choose(chosen ? null : card.id)}>
    <span class="id">${card.id}</span> <b>${breakable(card.name)}</b> ${!card.ended && html`<code>${card.input}</code>`}
    ${card.entries.length > 0 && html`<span class="entries">${card.entries.map((kind) => html`<i class=${kind} title=${kind} />`)}</span>`}
    ${card.tags.length > 0 && html`<span class="tags">${card.tags.map(([kind, text]) => html`<span class="tag ${kind}">${text}</span>`)}</span>`}
    ${card.outcome && html`<code class=${card.failed ? "bad" : ""}>${card.failed ? "✗ " : ""}${card.outcome}</code>`}
  </button>`;
}

function Worker({ worker, live, control, act, choose }) {
  const { process, lease } = worker;
  const free = Math.max(0, Math.min(process?.slots ?? 0, 40) - worker.tasks.length);
  const signal = (name) => () => act({ do: "signal", pid: process.pid, name });
  const over = lease !== null && lease < 0;
  return html`<div class="worker ${colour(worker.id)} ${over || worker.gone ? "orphaned" : ""}">
    <p><b>${worker.name}</b> ${worker.id && html`<span class="id">${worker.id}</span>`}${" "}
      ${process && html`<span class="tag ${process.stands_still ? "again" : ""}">${process.stands_still ? "stands still" : "process"} ${process.pid}</span>`}
      ${live && !process && !worker.gone && html`<span class="tag again">no process</span>`}
      ${worker.gone && html`<span class="tag again">its row is gone</span>`}</p>
    <p class="slots">${worker.tasks.map((id) => html`<button key=${id} class="slot" title="task ${id}" onClick=${() => choose(id)}>${id}</button>`)}
      ${Array.from({ length: free }, () => html`<span class="slot free" title="a free slot" />`)}</p>
    ${lease !== null && html`<p><meter min="0" max="10" low="1" optimum="10" value=${Math.max(0, lease)} /> <span class=${over ? "bad" : ""}>${over ? `lease over for ${(-lease).toFixed(1)} s` : `lease ${lease.toFixed(1)} s`}</span></p>`}
    ${control && process && html`<p class="buttons">
      <button class="danger" onClick=${signal("kill")}>kill -9</button>
      ${process.stands_still ? html`<button onClick=${signal("go on")}>go on</button>` : html`<button onClick=${signal("stand still")}>stand still</button>`}
      <button onClick=${() => act({ do: "cut", pid: process.pid })}>cut connections</button>
      <button onClick=${signal("stop")}>stop</button></p>`}
  </div>`;
}

function Wait({ wait }) {
  return html`<div class="wait">
    <p><b>${wait.waiter.label}</b> waits, ${wait.seconds.toFixed(1)} s</p><code>${wait.waiter.query}</code>
    ${wait.holders.map((holder) => html`<p>for <b>${holder.label}</b> (${holder.state})</p><code>${holder.query}</code>`)}
  </div>`;
}

function Held({ held, control, act }) {
  const answer = (text) => () => act({ do: "step", number: held.number, answer: text });
  return html`<div class="wait held">
    <p><b>The worker is held</b> before commit ${held.number}, ${held.statement}, which will change:</p><code>${held.changes}</code>
    ${control && html`<p class="buttons"><button onClick=${answer("")}>let it go</button>
      <button class="danger" onClick=${answer("b")}>kill -9 before it</button>
      <button class="danger" onClick=${answer("a")}>kill -9 after it</button></p>`}
  </div>`;
}

function Task({ task, moment, verbs, act, choose }) {
  const all = (column) => `/value?at=${moment}&task=${encodeURIComponent(task.id)}&column=${encodeURIComponent(column)}`;
  return html`<div class="task">
    <h2>task ${task.id} <b>${task.name}</b> <button aria-label="close" onClick=${() => choose(null)}>×</button></h2>
    <p class="buttons">${verbs.map((name) => html`<button onClick=${() => act({ do: "by_hand", name, task: task.id })}>${name}</button>`)}</p>
    ${task.tree && html`<ul class="tree"><${Branch} branch=${task.tree} chosen=${task.id} choose=${choose} /></ul>`}
    ${task.log.length > 0 && html`<h2>its log</h2><table>${task.log.map((entry) => html`<tr key=${entry.position}>
      <td>${entry.position}</td><td class="entries"><i class=${entry.kind} title=${entry.kind} /></td>
      <td><b>${entry.name}</b> <code>${entry.input}</code><code class=${entry.kind.endsWith("failed") ? "bad" : ""}>→ ${entry.outcome || "…"}</code></td>
      <td class="hint">${entry.remarks.map((remark) => html`<div>${remark}</div>`)}${entry.child && html`<button class="link" onClick=${() => choose(entry.child)}>task ${entry.child}</button>`}</td>
    </tr>`)}</table>`}
    <h2>its row</h2>
    <table>${task.row.map(([column, value, length]) => html`<tr key=${column}><th>${column}</th><td><code class="value">${value}</code>
      ${length > value.length && html`<a href=${all(column)} target="_blank" rel="noopener">all ${thousands(length)} characters</a>`}</td></tr>`)}</table>
  </div>`;
}

function Branch({ branch, chosen, choose }) {
  return html`<li><button class="link ${branch.status} ${branch.id === chosen ? "chosen" : ""}" onClick=${() => choose(branch.id)}>${branch.id} ${branch.name}: ${branch.status}</button>
    ${branch.children.length > 0 && html`<ul>${branch.children.map((child) => html`<${Branch} key=${child.id} branch=${child} chosen=${chosen} choose=${choose} />`)}</ul>`}</li>`;
}

function Grid({ grid }) {
  return html`<h2>${grid.name} <b>${thousands(grid.count)}</b></h2>
    <table class="grid"><tr>${grid.columns.map((column) => html`<th>${column}</th>`)}</tr>
      ${grid.rows.map((row) => html`<tr>${row.map((value) => html`<td><code>${value}</code></td>`)}</tr>`)}</table>`;
}

function Story({ view, go, step, choose }) {
  const [beats, setBeats] = useState(false);
  const list = useRef(null);
  const shown = (line) => beats || !line.quiet;
  const past = view.lines.filter(shown);
  const end = past.at(-1)?.number;
  const reading = useRef(false); // somebody has scrolled up: then new lines do not move what is read
  const onScroll = () => (reading.current = view.live && list.current.scrollTop + list.current.clientHeight < list.current.scrollHeight - 30);
  useLayoutEffect(() => {
    const here = list.current.querySelector(".here");
    if (here && !(view.live && reading.current)) list.current.scrollTop = here.offsetTop + here.offsetHeight - list.current.clientHeight + (view.live ? 0 : 40);
  }, [end, view.live]);
  const line = (one, kind) => html`<li key=${one.number} class=${kind}>
    <button class="link" title="the board after this" onClick=${() => go(one.number)}>${one.time || "–"}</button>
    <span class="hint">${one.xid && `tx ${one.xid}`}</span>
    <span>${one.events.map((event) => html`<span class="event is-${event.kind}">${event.task ? html`<button class="link" onClick=${() => choose(event.task)}>${event.text}</button>` : event.text}</span>`)}</span></li>`;
  return html`<footer>
    <p><button title="a commit back (←)" aria-label="back" onClick=${() => step(-1)}>◀</button>
      <input type="range" aria-label="moment" min=${view.first} max=${view.length} value=${view.moment} onInput=${(event) => go(Number(event.target.value))} />
      <button title="a commit on (→)" aria-label="on" onClick=${() => step(1)}>▶</button>
      <span class="position">${thousands(view.moment)} of ${thousands(view.length)}</span>
      <label><input type="checkbox" checked=${beats} onChange=${() => setBeats(!beats)} /> heartbeats</label></p>
    <ol ref=${list} onScroll=${onScroll}>${past.map((one, n) => line(one, n === past.length - 1 ? "here" : ""))}${view.ahead.filter(shown).map((one) => line(one, "ahead"))}</ol>
  </footer>`;
}

render(html`<${Page} />`, document.body);

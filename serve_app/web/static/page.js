// What htmx cannot: steps as they happen, the editor's line numbers, clips that play while they are seen.
// Everything it does is an extra; without it the page is forms and links.
(() => {
  "use strict";
  const $ = (id) => document.getElementById(id);
  const calm = matchMedia("(prefers-reduced-motion: reduce)");

  // -- the one live channel: the job's events, through htmx's SSE extension ------------------------------------
  let lastId = "";
  htmx.createEventSource = (url) =>
    new EventSource(lastId ? `${url}?last_event_id=${encodeURIComponent(lastId)}` : url);

  const later = new Map();
  /** Ask the server for this part again, once for all that happens in a moment. */
  function refresh(id, delay = 350) {
    if (later.has(id)) return;
    later.set(id, setTimeout(() => { later.delete(id); const part = $(id); if (part) htmx.trigger(part, "refresh"); }, delay));
  }
  function refreshFilm() {
    const film = $("film");
    if (!film) return;
    const into = { source: document.body, target: "#film", select: "#film", swap: "outerHTML show:none" };
    htmx.ajax("GET", film.dataset.url, into).catch(() => {}); // a server that is away is told by `htmx:sendError`
  }
  /** The film's bar never falls, whether an event or a part of the page says how far it is. */
  function grow(percent) {
    const film = $("film"), overall = $("overall");
    if (!film || !overall) return;
    overall.value = film.dataset.best = Math.max(overall.value, percent, Number(film.dataset.best || 0));
  }
  function announce(text) { $("announce").textContent = text; }

  function shotMoved(data) {
    const shot = data.shot, card = $(`shot-${shot.id}`);
    grow(100 * data.progress);
    if (!card) { refresh("now"); return; } // chunks of an edit have no cards
    card.querySelector(".going progress").value = 100 * shot.progress;
    card.querySelector(".going").hidden = shot.status !== "running";
    if (shot.message) card.querySelector(".says").textContent = shot.message === "done" ? "next step …" : shot.message;
    const running = shot.status === "running";
    if (card.dataset.status !== shot.status || (running && shot.message && card.dataset.kind !== shot.kind)) {
      card.dataset.status = shot.status;
      card.dataset.kind = shot.kind;
      refresh(card.id);
      refresh("now");
    }
  }
  const heard = {
    shot_update: shotMoved,
    progress(data) {
      const stage = $("stage");
      if (data.storyboard || document.querySelector(".stages")) refresh("now"); else if (stage) stage.textContent = data.message;
    },
    image_generated(data) { refresh(`shot-${data.storyboard_id}`); },
    stage_update() {
      refresh("now");
      if (!document.querySelector(".board, .stages")) later.set("film", later.get("film") || setTimeout(() => { later.delete("film"); refreshFilm(); }, 400));
    },
    warning() { refresh("now"); },
    error() { refresh("now"); },
    snapshot() { refreshFilm(); },
    done(data) { announce(data.message); lastId = ""; setTimeout(refreshFilm, 250); },
  };
  document.addEventListener("htmx:sseBeforeMessage", (event) => {
    event.preventDefault();
    const { type, data, lastEventId } = event.detail;
    if (data === undefined) return; // a lost connection is an event called `error` too, one without data
    if (lastEventId) lastId = lastEventId;
    const film = $("film");
    if (film) film.dataset.heard = String(Number(film.dataset.heard || 0) + 1);
    const act = heard[type];
    if (act) act(JSON.parse(data));
    if (type !== "shot_update" && $("log") && $("log").open) refresh("lines", 800);
  });

  // -- a server that is away, and back -------------------------------------------------------------------------
  let away = false;
  const AGAIN_MS = 3000;
  /** The event source comes back by itself; a film whose last event was heard has none any more. */
  function tryAgain() {
    if (!away) return;
    refreshFilm();
    setTimeout(tryAgain, AGAIN_MS);
  }
  function lost() {
    if (!away) {
      setTimeout(tryAgain, AGAIN_MS);
      away = true;
      $("link").className = "strip";
      $("link").textContent = "Connection lost. What is being rendered goes on; reconnecting …";
    }
  }
  function found() {
    if (!away) return;
    away = false;
    $("link").className = "strip back";
    $("link").textContent = "Connected again.";
    setTimeout(() => { if (!away) $("link").textContent = ""; }, 2500);
    refreshFilm();
  }
  document.addEventListener("htmx:sseError", lost);
  document.addEventListener("htmx:sseOpen", found);
  document.addEventListener("htmx:sendError", lost);
  document.addEventListener("htmx:afterRequest", (event) => {
    if (event.detail.successful && !document.querySelector("[sse-connect]")) found();
  });
  // Proxies and the server's own guard answer with other things than a page: those are told, not shown.
  document.addEventListener("htmx:beforeSwap", (event) => {
    const reply = event.detail.xhr;
    const isPage = (reply.getResponseHeader("Content-Type") || "").startsWith("text/html") && reply.status !== 502;
    if (isPage && reply.status === 404 && away) { location.reload(); return; } // forgotten meanwhile: say so in full
    if (isPage) return;
    event.detail.shouldSwap = false;
    // While the server starts, what stands before it says 404 to everything.
    if (away || reply.status >= 502) { lost(); return; }
    let text = `The server said ${reply.status}.`;
    try { text = JSON.parse(reply.responseText).detail || text; } catch { /* not JSON: the number must do */ }
    notice(text);
  });
  document.addEventListener("htmx:beforeRequest", (event) => {
    if (event.detail.elt.matches("form")) $("notice").replaceChildren();
  });
  function notice(text) {
    const box = document.createElement("div"), words = document.createElement("p"), close = document.createElement("button");
    box.className = "notice bad";
    words.textContent = text;
    close.type = "button"; close.className = "quiet"; close.dataset.dismiss = ""; close.textContent = "Close";
    box.append(words, close);
    $("notice").replaceChildren(box);
  }

  // -- clips ---------------------------------------------------------------------------------------------------
  let still = calm.matches;
  const seen = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting && !still) target.play().catch(() => {}); else if (!target.dataset.held) target.pause();
    }
  }, { threshold: 0.35 });
  function toggle(clip) {
    if (clip.paused) { clip.dataset.held = "1"; clip.play().catch(() => {}); } else { delete clip.dataset.held; clip.pause(); }
  }
  function setStill(value) {
    still = value;
    for (const clip of document.querySelectorAll("video.loop")) { seen.unobserve(clip); if (still) clip.pause(); seen.observe(clip); }
    showStill();
  }
  function showStill() {
    const button = $("stillness");
    if (!button) return;
    button.hidden = !document.querySelector("video.loop");
    button.textContent = still ? "Play clips" : "Pause clips";
  }
  calm.addEventListener("change", () => setStill(calm.matches));

  // -- the editor ----------------------------------------------------------------------------------------------
  function number() {
    const text = $("text"), gutter = $("gutter");
    if (!text) return;
    const found = document.querySelector(".issues");
    const wrong = new Set((found ? found.dataset.lines : "").split(" ").filter(Boolean).map(Number));
    const lines = text.value.split("\n").length;
    gutter.replaceChildren(...Array.from({ length: lines }, (_, index) => {
      const mark = document.createElement(wrong.has(index + 1) ? "b" : "span");
      mark.textContent = String(index + 1);
      return mark;
    }));
    gutter.scrollTop = text.scrollTop;
  }
  function goTo(line) {
    const text = $("text"), lines = text.value.split("\n");
    const start = lines.slice(0, line - 1).reduce((sum, one) => sum + one.length + 1, 0);
    text.focus();
    text.setSelectionRange(start, start + (lines[line - 1] || "").length);
    text.scrollTop = Math.max(0, (text.scrollHeight / lines.length) * (line - 4));
    text.scrollIntoView({ block: "nearest" });
  }

  // -- hands ---------------------------------------------------------------------------------------------------
  document.addEventListener("click", (event) => {
    const hit = (what) => event.target.closest(what);
    if (hit("[data-dismiss]")) $("notice").replaceChildren();
    else if (hit(".goto")) goTo(Number(hit(".goto").dataset.line));
    else if (hit("#stillness")) setStill(!still);
    else if (hit("video.loop")) toggle(hit("video.loop"));
  });
  document.addEventListener("keydown", (event) => {
    if (event.target.matches("video.loop") && (event.key === "Enter" || event.key === " ")) { event.preventDefault(); toggle(event.target); }
    if (event.target.id === "text" && event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("draft").requestSubmit($("make"));
  });
  document.addEventListener("submit", (event) => {
    const question = event.target.dataset.confirm;
    if (question && !confirm(question)) event.preventDefault();
  });
  document.addEventListener("input", (event) => { if (event.target.id === "text") number(); });
  document.addEventListener("scroll", (event) => { if (event.target.id === "text") $("gutter").scrollTop = event.target.scrollTop; }, true);

  /** Whatever came into the page, now or by a swap. */
  function arrived() {
    for (const clip of document.querySelectorAll("video.loop:not([data-seen])")) { clip.dataset.seen = "1"; seen.observe(clip); }
    for (const time of document.querySelectorAll("time[datetime]:not([data-local])")) {
      time.dataset.local = "1";
      time.textContent = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" }).format(new Date(time.dateTime));
    }
    const film = $("film");
    const badge = document.querySelector("#now .badge");
    if (film && badge) document.title = `${badge.textContent}: ${film.querySelector("h1").textContent}`;
    grow(0);
    showStill();
    number();
  }
  document.addEventListener("htmx:afterSwap", arrived);
  document.addEventListener("htmx:afterSettle", arrived);
  arrived();
  // Written before this script was there, or brought back by the browser: not checked yet.
  document.addEventListener("DOMContentLoaded", () => {
    const text = $("text");
    if (text && text.value !== text.defaultValue) { number(); htmx.trigger($("checkit"), "click"); }
  });
})();

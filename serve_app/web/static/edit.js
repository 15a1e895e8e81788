// Editing videos: an upload that shows how far it is, and the divider between before and after.
// Without it the form sends the video itself, and the two videos stand one below the other.
(() => {
  "use strict";
  const $ = (id) => document.getElementById(id);

  // -- the upload ----------------------------------------------------------------------------------------------
  let sending = null; // the request that runs
  let waits = false; // the form was sent while it ran
  const bytes = (count) => (count < 1e6 ? `${Math.ceil(count / 1e3)} kB` : count < 1e9 ? `${(count / 1e6).toFixed(1)} MB` : `${(count / 1e9).toFixed(2)} GB`);

  function said(text, isBad = false) {
    const why = document.createElement("p");
    why.className = "bad";
    why.textContent = text;
    $("why-input_video_path").replaceChildren(...(isBad ? [why] : []));
    $("uploaded").textContent = isBad ? "" : text;
    if (isBad) $("video").setAttribute("aria-invalid", "true"); else $("video").removeAttribute("aria-invalid");
  }
  /** What the form will name: an upload, or nothing. */
  function named(uri) {
    $("sent").value = uri;
    $("sent").disabled = !uri;
    if (uri) $("video").removeAttribute("name"); else $("video").name = "video"; // its bytes are not sent twice
  }
  function show(url) {
    $("sample").hidden = !url;
    $("no-sample").hidden = Boolean(url);
    $("pointing").hidden = !url;
    press("");
    if (url) $("preview").src = url; else $("preview").removeAttribute("src");
  }
  function over() {
    sending = null;
    $("upload").hidden = true;
  }
  function reason(request) {
    try { return JSON.parse(request.responseText).detail; } catch { return `The server said ${request.status}.`; }
  }
  function arrived(file, request) {
    over();
    if (request.status !== 201) { waits = false; said(reason(request), true); return; }
    const { uri, url, video } = JSON.parse(request.responseText);
    named(uri);
    show(url);
    said(`${file.name}: ${video.width_px} × ${video.height_px}, ${video.frames} frames, ${video.duration_s.toFixed(2)} s${video.has_sound ? ", with sound" : ", no sound"}`);
    if (waits) { waits = false; $("edit").requestSubmit($("make")); }
  }
  function send(file) {
    if (sending) sending.abort();
    named("");
    show("");
    if (!file) { over(); said(""); return; }
    if ($("result")) $("result").value = "";
    const most = Number($("edit").dataset.most);
    if (file.size > most) { said(`The video has ${bytes(file.size)}; the server takes at most ${bytes(most)}.`, true); return; }
    const request = new XMLHttpRequest();
    sending = request;
    $("upload").hidden = false;
    $("upload-bar").value = 0;
    said(`${file.name}: sending`);
    request.upload.addEventListener("progress", (event) => {
      if (request !== sending || !event.lengthComputable) return;
      $("upload-bar").value = (100 * event.loaded) / event.total;
      said(event.loaded < event.total ? `${file.name}: ${bytes(event.loaded)} of ${bytes(event.total)}` : `${file.name}: being looked at`);
    });
    request.addEventListener("load", () => { if (request === sending) arrived(file, request); });
    request.addEventListener("error", () => { if (request === sending) { over(); waits = false; said("The connection broke while the video was sent; choose it again.", true); } });
    request.open("POST", "/api/uploads");
    const body = new FormData(); // and not the file alone: the form says its name
    body.append("file", file);
    request.send(body);
  }
  function chosen() {
    const result = $("result").value;
    if (!result) return;
    if (sending) { sending.abort(); over(); }
    $("video").value = "";
    named("");
    said("");
    show(`/api/jobs/${encodeURIComponent(result.replace(/^job:/, ""))}/video`);
  }

  // -- pointing at the thing: on the first frame of the part that is edited -------------------------------------
  let pointing = ""; // the button that is pressed
  const POINT = /^(not\s+)?([\d.]+)\s*,\s*([\d.]+)\s*(?:@\s*0+)?$/;
  /** Where the picture lies in its element, and how large a pixel of it is shown. */
  function picture() {
    const video = $("preview"), { clientWidth: width, clientHeight: height } = video;
    const scale = Math.min(width / video.videoWidth, height / video.videoHeight);
    return { scale, left: (width - video.videoWidth * scale) / 2, top: (height - video.videoHeight * scale) / 2 };
  }
  function press(name) {
    pointing = name;
    for (const id of ["point", "point-not"]) $(id).setAttribute("aria-pressed", String(id === name));
    $("sample").classList.toggle("aimed", Boolean(name));
    $("preview").controls = !name;
    if (name) { $("preview").pause(); $("preview").currentTime = Number($("start_s").value) || 0; }
    dot();
  }
  function dot() {
    const video = $("preview");
    if (!video.videoWidth) { $("dots").replaceChildren(); return; }
    const { scale, left, top } = picture();
    $("dots").replaceChildren(...$("points").value.split(";").map((one) => one.trim().match(POINT)).filter(Boolean).map((found) => {
      const mark = document.createElement("i");
      mark.className = found[1] ? "not" : "on";
      mark.style.setProperty("left", `${left + found[2] * scale}px`);
      mark.style.setProperty("top", `${top + found[3] * scale}px`);
      return mark;
    }));
  }
  function aim(event) {
    const video = $("preview"), box = video.getBoundingClientRect(), { scale, left, top } = picture();
    const x = Math.round((event.clientX - box.left - left) / scale), y = Math.round((event.clientY - box.top - top) / scale);
    if (x < 0 || y < 0 || x >= video.videoWidth || y >= video.videoHeight) return;
    const before = $("points").value.trim().replace(/;$/, "");
    $("points").value = `${before ? `${before}; ` : ""}${pointing === "point-not" ? "not " : ""}${x},${y}`;
    dot();
  }

  // -- before and after ----------------------------------------------------------------------------------------
  const time = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;
  let share = 50;

  function place(percent) {
    share = Math.min(100, Math.max(0, percent));
    const pair = $("pair"), divider = $("divider");
    pair.style.setProperty("--at", `${share}%`);
    divider.setAttribute("aria-valuenow", String(Math.round(share)));
    divider.setAttribute("aria-valuetext", `${Math.round(share)} % before`);
  }
  /** Put the two videos over each other, once. The result leads: it is as long as the edit, and it has the sound. */
  function compare() {
    const figure = $("compare");
    if (!figure || figure.dataset.live) return;
    figure.dataset.live = "1";
    const after = $("player"), before = $("source"), pair = $("pair"), start = Number(figure.dataset.start);
    const follow = (most) => {
      const wanted = after.currentTime + start;
      if (before.readyState && Math.abs(before.currentTime - wanted) > most) before.currentTime = wanted;
    };
    const tell = () => {
      $("play").textContent = after.paused ? "Play" : "Pause";
      $("mute").textContent = after.muted ? "Sound on" : "Sound off";
      if (after.duration) $("seek").value = (1000 * after.currentTime) / after.duration;
      $("clock").textContent = `${time(after.currentTime)} / ${time(after.duration || 0)}`;
    };
    const shape = () => {
      if (after.videoWidth) pair.style.setProperty("--ratio", String(after.videoWidth / after.videoHeight));
      tell();
    };
    const run = () => {
      if (!figure.isConnected || after.paused) return;
      follow(0.08);
      tell();
      requestAnimationFrame(run);
    };
    figure.classList.add("live");
    for (const one of [after, before]) one.removeAttribute("controls");
    for (const one of [$("divider"), $("transport")]) one.hidden = false;
    after.addEventListener("play", () => { follow(0); before.play().catch(() => {}); tell(); run(); });
    after.addEventListener("pause", () => { before.pause(); follow(0); tell(); });
    for (const name of ["seeking", "seeked", "loadeddata"]) after.addEventListener(name, () => follow(0));
    for (const name of ["timeupdate", "volumechange", "durationchange"]) after.addEventListener(name, tell);
    before.addEventListener("loadeddata", () => follow(0));
    after.addEventListener("loadedmetadata", shape);
    const alone = () => {
      figure.classList.add("alone");
      $("divider").hidden = true;
      $("no-source").hidden = false;
    };
    before.addEventListener("error", alone);
    if (before.error) alone();
    shape();
    place(share);
    $("play").addEventListener("click", () => { if (after.paused) after.play().catch(() => {}); else after.pause(); });
    $("mute").addEventListener("click", () => { after.muted = !after.muted; });
    $("seek").addEventListener("input", () => { if (after.duration) after.currentTime = ($("seek").value / 1000) * after.duration; });
    const drag = (event) => {
      const box = pair.getBoundingClientRect();
      place((100 * (event.clientX - box.left)) / box.width);
    };
    pair.addEventListener("pointerdown", (event) => {
      if (event.button || figure.classList.contains("alone")) return;
      event.preventDefault();
      pair.setPointerCapture(event.pointerId);
      $("divider").focus({ preventScroll: true });
      drag(event);
    });
    pair.addEventListener("pointermove", (event) => { if (pair.hasPointerCapture(event.pointerId)) drag(event); });
    $("divider").addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -2, ArrowDown: -2, ArrowRight: 2, ArrowUp: 2, PageDown: -10, PageUp: 10, Home: -100, End: 100 }[event.key];
      if (by) { event.preventDefault(); place(share + by); }
      if (event.key === " ") { event.preventDefault(); $("play").click(); }
    });
  }

  document.addEventListener("change", (event) => {
    if (event.target.id === "video") send(event.target.files[0]);
    if (event.target.id === "result") chosen();
  });
  document.addEventListener("click", (event) => {
    const { id } = event.target;
    if (id === "point" || id === "point-not") press(pointing === id ? "" : id);
    else if (id === "point-none") { $("points").value = ""; dot(); }
    else if (id === "preview" && pointing) { event.preventDefault(); aim(event); }
    if (id !== "upload-stop" || !sending) return;
    sending.abort();
    waits = false;
    over();
    $("video").value = "";
    said("Stopped.");
  });
  document.addEventListener("submit", (event) => {
    if (event.target.id !== "edit" || !sending) return;
    event.preventDefault();
    waits = true;
    $("uploaded").textContent = "The edit begins as soon as the video is there.";
  });
  document.addEventListener("htmx:afterSwap", compare);
  compare();
  const form = $("edit");
  if (form) {
    $("points").addEventListener("input", dot);
    $("preview").addEventListener("loadedmetadata", dot);
    addEventListener("resize", dot);
    const uri = $("sent").value;
    if (uri) { named(uri); show(`/api/uploads/${uri.replace(/^upload:/, "")}`); }
    else if ($("result") && $("result").value) chosen();
    else if ($("video").files.length) send($("video").files[0]); // chosen before this script was there
    else show("");
  }
})();

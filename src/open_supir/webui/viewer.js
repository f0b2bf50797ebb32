const find = (name) => element.querySelector(name);

// The border stands still in the window while the pictures scroll below it.
function place() {
  const frame = find(".frame"), canvas = find(".canvas"), range = find("[type=range]");
  if (!frame || !range) return;
  const at = frame.scrollLeft + (range.value / 100) * frame.clientWidth;
  find(".compare").style.setProperty("--cut", `${(100 * at) / canvas.clientWidth}%`);
}

function show(side, url) {
  const select = find(`select[data-side=${side}]`);
  select.value = url;
  find(`.canvas .${side}`).src = url;
  find(`.canvas .${side}`).alt = select.selectedOptions[0].text;
}

function drag(event) {
  const frame = event.target.closest(".frame"), range = find("[type=range]");
  if (!frame || !range || !event.buttons || find(".compare.actual")) return;
  const box = frame.getBoundingClientRect();
  range.value = (100 * (event.clientX - box.left)) / box.width;
  place();
}

element.addEventListener("pointerdown", drag);
element.addEventListener("pointermove", drag);
element.addEventListener("scroll", place, true);
element.addEventListener("input", place);
element.addEventListener("change", (event) => {
  if (event.target.dataset.side) show(event.target.dataset.side, event.target.value);
  if (event.target.matches(".actual")) {
    find(".compare").classList.toggle("actual", event.target.checked);
    place();
  }
});
element.addEventListener("click", (event) => {
  const picked = event.target.closest("[data-url]");
  if (picked) show("right", picked.dataset.url);
  if (event.target.matches(".full")) {
    document.fullscreenElement ? document.exitFullscreen() : find(".compare").requestFullscreen();
  }
});

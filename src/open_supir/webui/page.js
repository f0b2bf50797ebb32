// What Gradio refuses by itself, such as too large a file, stands in a note that vanishes: Status keeps it.
() => {
  const keep = () => {
    const text = document.querySelector(".toast-body.error [data-testid='toast-text']")?.innerText;
    const fields = [...document.querySelectorAll("#status textarea, #batch_status textarea")];
    const field = fields.find((one) => one.offsetParent);
    if (!text || !field || field.value === "waiting for its turn") return; // the server answers that
    field.value = `error: ${text}`;
    field.dispatchEvent(new Event("input"));
  };
  const isNote = (change) =>
    change.target.closest(".toast-wrap") || [...change.addedNodes].some((node) => node.matches?.(".toast-wrap"));
  new MutationObserver((changes) => {
    if (changes.some((change) => change.addedNodes.length && isNote(change))) keep();
  }).observe(document.body, { childList: true, subtree: true });
}

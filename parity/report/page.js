"use strict";
// Without this script a cell's link opens its drill-down by the style's :target rule.
const matrix = document.getElementById("matrix");

function open(id, opener) {
  const dialog = document.getElementById(id);
  if (!(dialog instanceof HTMLDialogElement) || dialog.open) return;
  for (const other of document.querySelectorAll("dialog[open]")) other.close();
  dialog.showModal();
  dialog.scrollTop = 0;
  dialog.addEventListener("close", () => opener?.focus(), { once: true });
}

document.addEventListener("click", (event) => {
  const link = event.target.closest("a[href^='#cell-']");
  if (link) {
    event.preventDefault();
    const id = link.hash.slice(1);
    open(id, matrix?.querySelector(`a[href="#${id}"]`) ?? link);
  }
  const dialog = event.target.closest("dialog");
  if (dialog && (event.target === dialog || event.target.closest(".close"))) {
    event.preventDefault();
    dialog.close();
  }
});

// Arrow keys move between the cells of the matrix.
matrix?.addEventListener("keydown", (event) => {
  const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
  const from = event.target.closest("a[href^='#cell-']");
  if (!step || !from) return;
  event.preventDefault();
  let [row, column] = from.hash.slice(6).split("-").map(Number);
  for (let tries = 0; tries < 200; tries++) {
    row += step[0];
    column += step[1];
    const next = matrix.querySelector(`a[href="#cell-${row}-${column}"]`);
    if (next) {
      next.focus();
      return;
    }
  }
});

if (location.hash.startsWith("#cell-")) {
  const id = location.hash.slice(1);
  open(id, matrix?.querySelector(`a[href="#${id}"]`));
}
document.documentElement.classList.add("scripted");

/* Outlines of truth and prediction in the pictures of all cases, shown and hidden; on paper, all measures are open. */
document.querySelectorAll("[data-outline]").forEach((box) => box.addEventListener("change", () => {
  document.body.classList.toggle(`no-${box.dataset.outline}`, !box.checked);
}));
window.addEventListener("beforeprint", () => {
  document.querySelectorAll("details.measure").forEach((part) => { part.open = true; });
});

/* Outlines of truth and prediction in the pictures of all cases, shown and hidden; on paper, all measures of a few
   structures are open. */
document.querySelectorAll("[data-outline]").forEach((box) => box.addEventListener("change", () => {
  document.body.classList.toggle(`no-${box.dataset.outline}`, !box.checked);
}));
window.addEventListener("beforeprint", () => {
  document.querySelectorAll("details.measure").forEach((part) => {
    if (part.querySelectorAll(".strip").length <= 20) part.open = true;
  });
});

"use strict";
(() => {
  const form = document.getElementById("filters");
  if (!form) return;
  const PAGE = 20;
  const items = Array.from(document.querySelectorAll("#example-list > .example"));
  const texts = items.map((item) => item.textContent.toLowerCase());
  const fields = ["group", "family", "change"].map((name) => [name, document.getElementById("filter-" + name)]);
  const search = document.getElementById("filter-text");
  const status = document.getElementById("filter-status");
  const more = document.getElementById("show-more");
  let most = PAGE;

  const show = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let found = 0;
    items.forEach((item, place) => {
      const fits =
        fields.every(([name, field]) => !field || !field.value || item.dataset[name] === field.value) &&
        words.every((word) => texts[place].includes(word));
      found += fits ? 1 : 0;
      item.hidden = !fits || found > most;
    });
    const shown = Math.min(found, most);
    status.textContent = found ? `${shown} of ${found} examples shown` : "No example fits these filters";
    more.hidden = found <= most;
    return shown;
  };
  const again = () => {
    most = PAGE;
    show();
  };
  form.addEventListener("input", again);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(again));
  more.addEventListener("click", () => {
    const visible = items.filter((item) => !item.hidden);
    most += PAGE;
    show();
    const next = items.filter((item) => !item.hidden)[visible.length];
    if (next) {
      next.tabIndex = -1;
      next.focus();
    }
  });
  form.hidden = false;
  show();
})();

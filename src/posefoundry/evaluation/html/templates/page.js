"use strict";
(() => {
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const one = (id) => document.getElementById(id);
  document.documentElement.classList.add("js");

  // Tables that sort: numbers from large to small first, words from a to z; what has no value comes last either way.
  for (const table of all("table.sortable")) {
    const heads = all("thead th", table);
    heads.forEach((head, column) => {
      head.querySelector("button").addEventListener("click", () => {
        const isNumber = head.classList.contains("num");
        const before = head.getAttribute("aria-sort");
        const ascending = before === "none" ? !isNumber : before === "descending";
        heads.forEach((other) => other.setAttribute("aria-sort", "none"));
        head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
        const key = (row) => {
          const cell = row.children[column];
          if (!isNumber) return cell.textContent.trim();
          return cell.dataset.value === "" ? null : Number(cell.dataset.value);
        };
        const rows = all("tbody tr", table).map((row) => [key(row), row]);
        rows.sort(([a], [b]) => {
          if (a === null || b === null) return (a === null) - (b === null);
          const order = isNumber ? a - b : a.localeCompare(b, "en", { numeric: true });
          return ascending ? order : -order;
        });
        table.tBodies[0].append(...rows.map(([, row]) => row));
      });
    });
  }

  // The slices' filter.
  const group = one("slice-group"), find = one("slice-find");
  if (group && find) {
    const rows = all("#slice-table tbody tr");
    const apply = () => {
      const wanted = find.value.trim().toLowerCase().replaceAll("_", " ");
      for (const row of rows) {
        const fits = !group.value || row.dataset.group === group.value;
        row.hidden = !(fits && row.cells[0].textContent.toLowerCase().includes(wanted));
      }
      const shown = rows.filter((row) => !row.hidden).length;
      one("slice-count").textContent = shown === rows.length ? `${shown} slices` : `${shown} of ${rows.length} slices`;
    };
    group.addEventListener("change", apply);
    find.addEventListener("input", apply);
    apply();
  }

  // The gallery: one group at a time, of the kinds that are chosen.
  const groups = all(".gallery-group"), tabs = all("[data-tab]"), facets = all("[data-facet]");
  if (tabs.length) {
    const apply = () => {
      const tab = tabs.find((button) => button.getAttribute("aria-pressed") === "true").dataset.tab;
      const wanted = facets.map((select) => select.value).filter(Boolean);
      for (const part of groups) {
        part.hidden = part.dataset.group !== tab;
        const cards = all(".card", part);
        for (const card of cards) {
          const has = JSON.parse(card.dataset.facets);
          card.hidden = !wanted.every((facet) => has.includes(facet));
        }
        const shown = cards.filter((card) => !card.hidden).length;
        part.querySelector(".empty").hidden = shown > 0;
        if (!part.hidden) {
          one("gallery-count").textContent = shown === cards.length ? `${shown} images` : `${shown} of ${cards.length} images`;
        }
      }
      const clear = one("clear-facets");
      if (clear) clear.hidden = wanted.length === 0;
    };
    for (const button of tabs) {
      button.addEventListener("click", () => {
        tabs.forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
        apply();
      });
    }
    facets.forEach((select) => select.addEventListener("change", apply));
    one("clear-facets")?.addEventListener("click", () => {
      facets.forEach((select) => { select.value = ""; });
      apply();
    });
    apply();
  }

  // A picture enlarged: its panels are copied, what they refer to stays where it is.
  const dialog = one("enlarged");
  for (const button of all(".enlarge")) {
    button.addEventListener("click", () => {
      const card = button.closest(".card");
      const panels = card.querySelector(".panels").cloneNode(true);
      panels.removeAttribute("tabindex");
      all("image[id]", panels).forEach((image) => {
        const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
        use.setAttribute("href", `#${image.id}`);
        image.replaceWith(use);
      });
      all("[id]", panels).forEach((element) => element.removeAttribute("id"));
      const stage = dialog.querySelector(".stage");
      stage.classList.toggle("triple", card.classList.contains("triple"));
      stage.replaceChildren(panels, card.querySelector("figcaption").cloneNode(true));
      dialog.showModal();
    });
  }
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close();
  });
})();

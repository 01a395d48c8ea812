"use strict";
// Copy buttons, sorting within groups, and details of the option under the pointer, finger or keyboard. The page reads well without.
(() => {
  for (const button of document.querySelectorAll(".copy")) {
    const code = button.parentElement.querySelector("code");
    button.hidden = false;
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(code.textContent);
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(code);
        button.textContent = "Selected";
      }
      setTimeout(() => { button.textContent = "Copy"; }, 1600);
    });
  }

  const points = [...document.querySelectorAll(".point[data-option]")];
  const show = (option) => {
    for (const article of document.querySelectorAll(".details article")) article.hidden = article.id !== `detail-${option}`;
    for (const point of points) {
      const on = point.dataset.option === option;
      point.classList.toggle("on", on);
      point.setAttribute("tabindex", on ? "0" : "-1");
      point.setAttribute("aria-pressed", on);
    }
  };
  for (const point of points) {
    const option = point.dataset.option;
    point.addEventListener("pointerenter", () => show(option));
    point.addEventListener("click", () => show(option));
    point.addEventListener("focus", () => show(option));
    point.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (!step && event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      if (!step) return show(option);
      const all = [...point.parentElement.querySelectorAll(".point[data-option]")].sort((a, b) => a.dataset.x - b.dataset.x);
      all[(all.indexOf(point) + step + all.length) % all.length].focus();
    });
  }

  const table = document.querySelector("table.tried");
  const value = (row, key) => {
    if (key === "name") return row.dataset.name;
    const cell = row.querySelector(`[data-${key}]`);
    const text = cell ? cell.getAttribute(`data-${key}`) : "";
    return text === "" || text === "nan" ? Infinity : Number(text);
  };
  for (const head of table.querySelectorAll("th[data-sort]")) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of table.querySelectorAll("th[data-sort]")) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      for (const body of table.tBodies) {
        const rows = [...body.rows].filter((row) => !row.classList.contains("group"));
        rows.sort((a, b) => {
          const [x, y] = [value(a, head.dataset.sort), value(b, head.dataset.sort)];
          if (x === y) return 0;
          if (x === Infinity || y === Infinity) return x === Infinity ? 1 : -1; // what was not measured stays last
          return (x < y ? -1 : 1) * (down ? -1 : 1);
        });
        body.append(...rows);
      }
    });
  }
})();

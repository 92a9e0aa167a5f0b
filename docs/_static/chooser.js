// "You have this framework: call that", and a filter above the table of all.
"use strict";

function chooser() {
  const options = TRUTH.map((row, i) => element("option", { value: i }, row.framework));
  const choice = element("select", { id: "chooser-framework" }, ...options);
  const answer = element("div", { id: "chooser-call", "aria-live": "polite" });
  const show = () => {
    const row = TRUTH[choice.value];
    const note = row.note ? [element("p", {}, `${row.note}.`)] : [];
    answer.replaceChildren(code(row.call ? `tx = ${row.call}` : "no call"), ...note);
  };
  choice.addEventListener("change", show);
  show();
  return element("div", { class: "rms-box" }, field("You have", choice), field("You write", answer));
}

function filter(table) {
  const rows = [...table.querySelectorAll("tbody tr")];
  const count = element("span", { id: "filter-count", "aria-live": "polite" });
  const input = element("input", {
    id: "filter",
    type: "search",
    placeholder: "keras decoupled run",
    oninput: () => update(),
  });
  const update = () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    rows.forEach((row) => {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    });
    count.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length}`;
  };
  update();
  return element("div", { class: "rms-box" }, field("Rows with all of these words", input), count);
}

const place = document.getElementById("chooser");
const table = document.querySelector("table");
place.append(chooser());
table.closest(".pst-scrollable-table-container, table").before(filter(table));

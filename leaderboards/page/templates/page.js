"use strict";
// Texts of models go through textContent alone, so nothing in them is ever markup.
const byId = (id) => document.getElementById(id);
const unpacked = (id) => {  // resolves to the value that is in the page as base64 of compressed JSON
  const bytes = Uint8Array.from(atob(byId(id).textContent), (one) => one.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
};

const theme = byId("theme"), dark = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (document.documentElement.dataset.theme || (dark.matches ? "dark" : "light")) === "dark";
const named = () => { theme.textContent = isDark() ? "Light" : "Dark"; };
theme.hidden = false;
theme.addEventListener("click", () => { document.documentElement.dataset.theme = isDark() ? "light" : "dark"; named(); });
dark.addEventListener("change", named);
named();

for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, place) => head.addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") === "descending";
    const key = (row) => { const cell = row.cells[place]; return cell.dataset.key === undefined ? null : +cell.dataset.key; };
    const order = (a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === null && y === null) return a.cells[place].textContent.localeCompare(b.cells[place].textContent) * (up ? -1 : 1);
      if (x === null || y === null) return x === null ? 1 : -1;
      return (x === y ? 0 : x - y) * (up ? 1 : -1);
    };
    const rows = [...body.rows].sort(order);
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    body.append(...rows);
  }));
}

const filter = byId("filter");
filter.parentElement.hidden = false;
filter.addEventListener("input", () => {
  const wanted = filter.value.toLowerCase(), rows = [...byId("table-main").tBodies[0].rows];
  for (const row of rows) row.classList.toggle("gone", !row.textContent.toLowerCase().includes(wanted));
  const left = rows.filter((row) => !row.classList.contains("gone")).length;
  byId("matches").textContent = wanted ? `${left} of ${rows.length}` : "";
});

const browse = (samples) => {
  const [prompt, draw] = [byId("prompt"), byId("draw")], body = byId("texts").tBodies[0];
  const cell = (tag, text) => { const made = document.createElement(tag); made.textContent = text; made.dir = "auto"; return made; };
  const fit = (number) => Math.min(Math.max(Math.round(number) || 1, 1), samples.prompts.length);
  const show = () => {
    const place = fit(+prompt.value) - 1;
    const own = samples.units.filter((unit) => unit[0] === place);
    const unit = own.find((one) => one[1] === +draw.value) || own[0];
    prompt.value = place + 1;
    draw.replaceChildren(...own.map((one) => new Option(samples.draws[one[1]], one[1], false, one === unit)));
    byId("asked").textContent = samples.prompts[place];
    body.replaceChildren(...samples.rows.map((name, row) => {
      const line = document.createElement("tr"), head = cell("th", name), text = cell("td", "");
      head.scope = "row";
      const inner = cell("div", unit[2][row] ?? "(not recorded)");
      inner.className = "text";
      text.append(inner);
      line.append(head, cell("td", unit[3][row] ?? "-"), text);
      return line;
    }));
    for (const one of body.querySelectorAll(".text")) if (one.scrollHeight > one.clientHeight) one.tabIndex = 0;
  };
  const step = (by) => () => { prompt.value = fit(+prompt.value + by); show(); };
  byId("prompts").textContent = samples.prompts.length;
  byId("metric").textContent = samples.metric || "score";
  prompt.max = samples.prompts.length;
  prompt.addEventListener("change", show);
  draw.addEventListener("change", show);
  byId("previous").addEventListener("click", step(-1));
  byId("next").addEventListener("click", step(1));
  byId("browser").hidden = false;
  show();
};
if (byId("plo-samples")) {
  if (self.DecompressionStream) unpacked("plo-samples").then(browse); else byId("unreadable").hidden = false;
}

const turning = /[\u007f-\u009f\u202a-\u202e\u2066-\u2069]/g;
const escaped = (mark) => "\\u" + mark.charCodeAt(0).toString(16).padStart(4, "0");
const manifest = byId("manifest");
if (manifest) manifest.parentElement.addEventListener("toggle", async () => {  // large, and hardly ever opened
  manifest.textContent = JSON.stringify(await unpacked("plo-manifest"), null, 1).replace(turning, escaped);
}, { once: true });

let closed = [];
addEventListener("beforeprint", () => {
  closed = [...document.querySelectorAll("details:not([open]):not(.screen)")];
  for (const one of closed) one.open = true;
});
addEventListener("afterprint", () => { for (const one of closed) one.open = false; });

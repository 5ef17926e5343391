"use strict";
// The page without this script shows everything. It filters by what is in the address after #, so that a view can be linked, and opens the
// rows behind a number. Elements say in data-model, -set, -metric, -run and -tags what they are of; a list is JSON in data-<facet>s.
(() => {
  const FACETS = ["model", "set", "metric", "run", "tag"];
  const SHOWN = 1000; // prompts of one number that are listed; the CSV has all
  const one = (selector, of = document) => of.querySelector(selector);
  const all = (selector, of = document) => [...of.querySelectorAll(selector)];
  const bar = one("#filter");
  const dialog = one("#rows");
  const boxes = all("input[type=checkbox]", bar);
  const filtered = all(FACETS.flatMap((facet) => [`main [data-${facet}]`, `main [data-${facet}s]`]).join(","));
  const groups = all("main .group").reverse(); // inner ones first
  const lines = all("main tr[data-cell]");

  const make = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  };

  // ---------------------------------------------------------------------------------------- what the address says

  const state = () => {
    const hash = location.hash.slice(1);
    if (hash.includes("=")) return new URLSearchParams(hash);
    return new URLSearchParams(hash.startsWith("cell/") ? { cell: hash } : hash ? { at: hash } : {});
  };

  const go = (changes) => {
    const next = state();
    next.delete("at");
    for (const [name, value] of Object.entries(changes)) {
      next.delete(name);
      for (const item of [value].flat()) if (item !== null) next.append(name, item);
    }
    // pushState, as an empty hash would scroll to the top
    history.pushState(null, "", `#${next}`);
    apply();
  };

  const chosen = (wanted) => {
    const found = Object.fromEntries([...FACETS, "suite"].map((facet) => [facet, new Set()]));
    const sets = new Set();
    for (const box of boxes) {
      box.checked = wanted.getAll(box.name).includes(box.value); // an unknown value in the address is none
      if (!box.checked) continue;
      found[box.name].add(box.value);
      if (box.name === "suite") for (const name of JSON.parse(box.dataset.of)) sets.add(name);
    }
    if (found.suite.size) found.set = new Set([...sets].filter((s) => !found.set.size || found.set.has(s)));
    return found;
  };

  const passes = (element, wanted) =>
    FACETS.every((facet) => {
      const value = element.dataset[facet];
      const several = element.dataset[`${facet}s`];
      if (value === undefined && several === undefined) return true;
      if (!wanted[facet].size && !(facet === "set" && wanted.suite.size)) return true;
      return value === undefined
        ? JSON.parse(several).some((item) => wanted[facet].has(item))
        : wanted[facet].has(value);
    });

  const apply = () => {
    const at = state();
    const wanted = chosen(at);
    for (const element of groups) element.hidden = false;
    for (const element of filtered) element.hidden = !passes(element, wanted);
    for (const group of groups) {
      const leaves = all(".leaf", group);
      if (leaves.length && leaves.every((leaf) => leaf.closest("[hidden]"))) group.hidden = true;
    }
    const count = boxes.filter((box) => box.checked).length;
    const seen = lines.filter((line) => !line.closest("[hidden]")).length;
    one("#filter .count").textContent = count ? ` (${count})` : "";
    one("#shown").textContent = `${seen} of ${lines.length} lines of numbers shown`;
    one("#clear").setAttribute("aria-disabled", !count); // not disabled: that would take the focus from who has just pressed it
    for (const empty of all(".empty"))
      empty.hidden = !count || all(".leaf", empty.parentElement).some((leaf) => !leaf.closest("[hidden]"));
    for (const place of all(".tagged")) place.hidden = !wanted.tag.size;
    if (wanted.tag.size) tagged(wanted.tag);
    open(at.get("cell"), wanted.tag);
    const place = at.get("at") && document.getElementById(at.get("at"));
    if (place) {
      place.scrollIntoView();
      place.setAttribute("tabindex", "-1"); // where the keyboard goes on from
      place.focus({ preventScroll: true });
    }
  };

  // -------------------------------------------------------------------------------------------------- the rows

  let loading;
  const load = () =>
    (loading ??= (async () => {
      if (typeof DecompressionStream === "undefined")
        throw new Error("This browser cannot unpack the rows: a newer one can, and the score files have them.");
      const bytes = Uint8Array.from(atob(one("#data").textContent.trim()), (c) => c.charCodeAt(0));
      return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
    })());

  const number = (value, unit, sign = false) => {
    if (value === null || Number.isNaN(value)) return "–";
    const text = unit === "share" ? (100 * value).toFixed(1) : value.toFixed(3);
    return (sign && value >= 0 ? `+${text}` : text).replace("-", "−");
  };
  const less = (a, b) => (a === null || b === null ? null : a - b);

  // the prompts of a cell, each with its value, the base's, text and tags
  const promptsOf = (data, cell) => {
    const set = data.sets[`${cell.model}/${cell.set}`];
    const place = new Map(set.ids.map((id, i) => [id, i]));
    return cell.ids.map((id, i) => ({
      id,
      place: place.get(id),
      text: set.texts[place.get(id)],
      tags: set.tags[place.get(id)],
      run: cell.values[i],
      base: cell.base[i],
      difference: cell.run === data.against ? null : less(cell.values[i], cell.base[i]),
    }));
  };

  // the score rows of a cell and of what it is compared with, as the file has them
  const rowsOf = (data, cell, place = null) => {
    const { slots, ids } = data.sets[`${cell.model}/${cell.set}`];
    const found = [];
    for (const scoring of data.scorings) {
      const mine = scoring.model === cell.model && scoring.prompt_set === cell.set && scoring.scorer === cell.scorer;
      if (!mine || ![cell.run, data.against].includes(scoring.experiment)) continue;
      const pictures = data.pictures[scoring.pictures].split(",");
      scoring.values.split(",").forEach((value, i) => {
        const [prompt, image] = slots[i];
        if (value === "-" || (place !== null && prompt !== place)) return;
        found.push({ ...scoring, prompt_id: ids[prompt], image, picture: pictures[i], value });
      });
    }
    return found;
  };

  const csv = (columns, records) =>
    [columns, ...records.map((record) => columns.map((name) => record[name] ?? ""))]
      .map((line) => line.map((cell) => (/[",\r\n]/.test(cell) ? `"${String(cell).replaceAll('"', '""')}"` : cell)).join(","))
      .join("\n") + "\n";

  const download = (text, name) => {
    const address = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
    make("a", { href: address, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(address), 60000);
  };

  // numbers of the tagged prompts alone: mean of their values; of two standard errors over prompts, training seeds averaged
  const tagged = async (tags) => {
    let data;
    try {
      data = await load();
    } catch (error) {
      one("#shown").textContent = error.message;
      return;
    }
    for (const line of lines) {
      const cell = data.cells[line.dataset.cell];
      const some = promptsOf(data, cell).filter((p) => p.run !== null && p.tags.some((tag) => tags.has(tag)));
      const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
      let text = some.length ? "of all together only" : "none has the tag";
      if (some.length && cell.mean) {
        text = `${number(mean(some.map((p) => p.run)), cell.unit)}, n ${some.length}`;
        const gains = some.map((p) => p.difference).filter((value) => value !== null);
        if (gains.length > 1) {
          const middle = mean(gains);
          const error = Math.sqrt(mean(gains.map((g) => (g - middle) ** 2)) / (gains.length - 1));
          text += `; ${number(middle, cell.unit, true)} ± ${number(1.96 * error, cell.unit)}`;
        }
      }
      one("td.tagged", line).textContent = text;
    }
  };

  let opened = null;
  let order = { by: "difference", down: true };
  const open = async (id, tags) => {
    opened = id;
    if (id === null) return dialog.open && dialog.close();
    const body = one("#rows-of");
    try {
      const data = await load();
      if (opened !== id) return;
      body.replaceChildren(...(data.cells[id] ? sheet(data, data.cells[id], tags) : ["There is no such number on this page."]));
      one("#rows-title").textContent = data.cells[id] ? `${data.cells[id].run} · ${data.cells[id].title}` : "Rows";
    } catch (error) {
      body.replaceChildren(error.message);
    }
    if (!dialog.open) dialog.showModal();
  };

  const sheet = (data, cell, tags) => {
    const name = `${cell.run}-${cell.metric}-${cell.set}`;
    const asked = promptsOf(data, cell);
    const some = asked.filter((p) => !tags.size || p.tags.some((tag) => tags.has(tag)));
    const versions = `${cell.scorer} ${cell.from.version.join(" and ")}`;
    const parts = [
      make("p", {}, make("b", {}, cell.set), `: ${cell.told}`),
      make("p", { class: "soft" }, `Scorer ${versions}; suite ${cell.from.suite.join(" and ")}; prompts ${cell.from.prompts.join(" and ")}; rows of ${cell.from.file.join(", ") || "no file"}.`),
    ];
    if (cell.conflict) parts.push(make("p", { class: "warn" }, `Forced: ${cell.conflict}.`));
    const note = cell.mean
      ? "Each line is the metric of one prompt, over its images and all training seeds; the number above is their mean."
      : "Each line is the metric of one prompt by itself; the number above is of all prompts together, and not their mean.";
    parts.push(make("p", { class: "soft" }, `${note} ${some.length} of ${asked.length} prompts${tags.size ? " have the tag" : ""}.`));
    const buttons = make("p", { class: "buttons" });
    const save = make("button", { type: "button" }, "Prompts as CSV");
    save.onclick = () => download(csv(["id", "text", "tags", "run", "base", "difference"], some.map((p) => ({ ...p, tags: p.tags.join("; ") }))), `${name}-prompts.csv`);
    buttons.append(save);
    if (data.whole) {
      const raw = make("button", { type: "button", id: "raw" }, "Score rows as CSV");
      raw.onclick = () => {
        const ids = new Set(some.map((p) => p.id));
        download(csv(data.columns, rowsOf(data, cell).filter((row) => ids.has(row.prompt_id))), `${name}.csv`);
      };
      buttons.append(raw);
    } else buttons.append(" Single rows are in the score files: there are too many for a page.");
    const box = make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Prompts" });
    parts.push(buttons, box);
    fill(box, data, cell, some);
    return parts;
  };

  const fill = (box, data, cell, some) => {
    const value = (p) => (order.by === "prompt" ? p.text : p[order.by]);
    const sorted = [...some].sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === null || y === null) return (x === null) - (y === null);
      return (x < y ? -1 : x > y ? 1 : 0) * (order.down ? -1 : 1);
    });
    const head = make("tr");
    for (const [by, title] of [["prompt", "prompt"], ["run", cell.run], ["base", data.against], ["difference", "difference"]]) {
      const sort = make("button", { type: "button", class: "sort" }, title);
      sort.onclick = () => {
        order = { by, down: order.by === by ? !order.down : by !== "prompt" };
        fill(box, data, cell, some);
        one(`[data-by="${by}"]`, box).focus();
      };
      sort.dataset.by = by;
      const sorting = order.by === by ? (order.down ? "descending" : "ascending") : "none";
      head.append(make("th", { scope: "col", "aria-sort": sorting }, sort));
    }
    const table = make("tbody");
    for (const p of sorted.slice(0, SHOWN)) {
      const said = make("th", { class: "prompt", scope: "row" }, p.text, " ", make("small", {}, p.tags.join(", ")));
      if (data.whole) {
        const details = make("details", {}, make("summary", {}, p.text), make("small", {}, p.tags.join(", ")));
        details.addEventListener("toggle", () => {
          if (!one("table", details)) details.append(raws(rowsOf(data, cell, p.place)));
        });
        said.replaceChildren(details);
      }
      table.append(make("tr", {}, said, ...[number(p.run, cell.unit), number(p.base, cell.unit), number(p.difference, cell.unit, true)].map((text) => make("td", { class: "num" }, text))));
    }
    box.replaceChildren(make("table", {}, make("thead", {}, head), table));
    if (sorted.length > SHOWN) box.append(make("p", { class: "soft" }, `${sorted.length - SHOWN} more are in the CSV.`));
  };

  const raws = (rows) =>
    make("table", { class: "raw" },
      make("thead", {}, make("tr", {}, ...["run", "seed", "image", "value", "picture"].map((name) => make("th", { scope: "col" }, name)))),
      make("tbody", {}, ...rows.map((row) =>
        make("tr", {}, ...[row.experiment, row.seed, row.image, row.value || "not applicable", row.picture || "–"].map((text) => make("td", {}, String(text)))))));

  // ------------------------------------------------------------------------------------------------------ events

  bar.hidden = false;
  bar.addEventListener("change", (event) => {
    const name = event.target.name;
    go({ [name]: boxes.filter((box) => box.name === name && box.checked).map((box) => box.value) });
  });
  one("#clear").addEventListener("click", () => go(Object.fromEntries(boxes.map((box) => [box.name, []]))));
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[href^='#']");
    if (link && !event.ctrlKey && !event.metaKey && !event.shiftKey) {
      event.preventDefault(); // the filter stays in the address
      const id = link.getAttribute("href").slice(1);
      go(id.startsWith("cell/") ? { cell: id } : { at: id, cell: [] });
    }
    if (bar.open && !bar.contains(event.target)) bar.open = false;
  });
  bar.addEventListener("focusout", (event) => {
    if (event.relatedTarget && !bar.contains(event.relatedTarget)) bar.open = false; // it would lie over what has the focus now
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && bar.open) {
      bar.open = false;
      one("summary", bar).focus();
    }
  });
  one("#close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  dialog.addEventListener("close", () => opened !== null && go({ cell: [] }));
  let closed = []; // what is closed would not be printed
  addEventListener("beforeprint", () => {
    closed = all("main details:not([open])");
    for (const details of closed) details.open = true;
  });
  addEventListener("afterprint", () => {
    for (const details of closed) details.open = false;
  });
  addEventListener("hashchange", apply);
  apply();
})();

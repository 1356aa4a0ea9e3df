// The report's script: colours, the token microscope, and the two lists, drawn from the island of JSON. Texts of data sets and
// models enter the page as text nodes and never as markup. Without this script the rest of the page stands.
(() => {
"use strict";
const root = document.documentElement;

// Colours: the system's unless the reader chose; set before the first paint.
const store = {
  get theme() { try { return localStorage.getItem("smollora-report-theme"); } catch { return null; } },
  set theme(value) { try { localStorage.setItem("smollora-report-theme", value); } catch { /* a page without storage */ } },
};
const paint = (theme) => { root.dataset.theme = ["light", "dark"].includes(theme) ? theme : "system"; };
paint(store.theme);

document.addEventListener("DOMContentLoaded", () => {
  const all = (selector, inside = document) => [...inside.querySelectorAll(selector)];
  const byId = (id) => document.getElementById(id);

  for (const choice of all("[name=theme]")) {
    choice.checked = choice.value === root.dataset.theme;
    choice.addEventListener("change", () => { paint(choice.value); store.theme = choice.value; });
  }

  /** An element; strings among its children become text. */
  const make = (tag, attributes, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes ?? {})) {
      if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
    }
    element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== ""));
    return element;
  };
  const dictionary = (entries) => Object.assign(Object.create(null), entries); // "constructor" is no key of it
  const isolated = (text) => make("bdi", null, text);
  const count = (number) => number.toLocaleString("en");

  // The microscope: what is known of the token under the pointer or the focus.
  const microscope = byId("microscope-says");
  const scope = byId("microscope");
  const known = new WeakMap(); // a box of tokens -> (place) => [[term, value, probability or undefined]]
  const tell = (token) => {
    if (!microscope) return;
    microscope.textContent = "";
    const box = token?.closest(".tokens");
    if (scope) scope.hidden = !box;
    if (!box) return;
    const list = make("dl");
    for (const [term, value, probability] of known.get(box)(Number(token.dataset.at))) {
      const shown = make("dd", { class: term === "Token" ? "mono" : null }, isolated(value));
      if (probability !== undefined) {
        const bar = make("span", { class: "probability", "aria-hidden": "true" }, make("span"));
        bar.firstChild.style.width = `${probability * 100}%`;
        shown.append(bar);
      }
      list.append(make("div", null, make("dt", null, term), " ", shown));
    }
    microscope.append(list);
  };
  const tokenAt = (event) => event.target.closest?.(".tokens i");
  let focused = null, leaving = 0;
  document.addEventListener("pointerover", (event) => {
    clearTimeout(leaving);
    const token = tokenAt(event);
    if (token) tell(token);
    else if (!event.target.closest?.("#microscope")) leaving = setTimeout(() => tell(focused), 1200);
  });
  document.addEventListener("click", (event) => { const token = tokenAt(event); if (token) tell(token); });
  document.addEventListener("focusin", (event) => { focused = tokenAt(event) ?? null; tell(focused); });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && microscope?.firstChild) { tell(null); return; }
    const box = event.target.closest?.(".tokens");
    if (!box || event.altKey || event.ctrlKey || event.metaKey) return;
    const tokens = all("i", box);
    const here = tokens.indexOf(event.target);
    const labelled = (step) => {
      for (let place = here + step; tokens[place]; place += step) {
        const [now, before] = [tokens[place], tokens[place - 1]].map((token) => token?.closest(".labelled, .special"));
        if (now && now !== before) return place;
      }
    };
    const to = {
      ArrowRight: () => here + 1, ArrowLeft: () => Math.max(here, 0) - 1, Home: () => 0, End: () => tokens.length - 1,
      ArrowDown: () => labelled(1), ArrowUp: () => labelled(-1),
    }[event.key]?.();
    if (to === undefined || !tokens[to]) return;
    event.preventDefault();
    tokens[to].tabIndex = -1;
    tokens[to].focus({ preventScroll: true });
    tokens[to].scrollIntoView({ block: "nearest", behavior: "instant" }); // its margin keeps clear of the microscope
  });

  const island = JSON.parse(byId("island")?.textContent || "null");
  if (island) {
    const { vocabulary, special } = island;
    const plain = (token) => vocabulary[token][1].replaceAll("\u21b5\n", "\n").replaceAll("\u21e5\t", "\t");

    /** Tokens of one item; neighbours of one kind share a span. kindOf: place -> class names. */
    const tokenBox = (label, item, kindOf, describe, shadesOf = () => ({})) => {
      const box = make("div", { class: "tokens", role: "group", tabindex: "0", "aria-label": label, "aria-describedby": "keys" });
      let span = null;
      item.tokens.forEach((token, place) => {
        if (place === item.gap?.[0]) { box.append(make("span", { class: "gap" }, `${count(item.gap[1])} tokens not shown`)); span = null; }
        const kind = kindOf(place);
        if (span?.className !== kind) { span = make("span", { class: kind }); box.append(span); }
        span.append(make("i", { "data-at": place, ...shadesOf(place) }, vocabulary[token][1]));
      });
      known.set(box, describe);
      return box;
    };
    const position = (item, place) => (item.gap && place >= item.gap[0] ? place + item.gap[1] : place);
    const named = (item, place) => {
      const [id, text] = vocabulary[item.tokens[place]];
      return [["Token", text.replaceAll("\u21b5\n", "\u21b5").replaceAll("\u21e5\t", "\u21e5")], ["Id", String(id)], ["Position", `${count(position(item, place) + 1)} of ${count(item.length)}`]];
    };

    // Training rows.
    const OWNERS = ["system", "user", "assistant", "tool"];
    const PARTS = dictionary({ open: "opening delimiter", close: "closing delimiter" });
    const chance = (thousandths) => {
      const share = Math.exp(-thousandths / 1000);
      return share >= 0.9995 ? ">99.9%" : share < 0.0005 ? "<0.1%" : `${(share * 100).toFixed(1)}%`;
    };
    const shade = (thousandths) => [100, 500, 1500, 3000, 6000].filter((limit) => thousandths >= limit).length;
    const WHEN = dictionary({ base: "before", merged: "after" });
    const capital = (word) => word[0].toUpperCase() + word.slice(1);
    const when = (model) => WHEN[model] ?? model;

    const rowBody = (row) => {
      const labels = row.runs.flatMap(([owner, part, length]) => Array(length).fill([owner, part]));
      const scores = Object.entries(row.logprobs ?? {}).map(([model, values]) => {
        let next = 0; // values are those of labelled tokens alone
        return [model, labels.map(([, part]) => (part ? values[next++] : null))];
      });
      const role = (owner) => row.roles[owner];
      const kindOf = (place) => {
        const [owner, part] = labels[place];
        const css = OWNERS.includes(role(owner)) ? role(owner) : "template";
        return `run ${css}${part ? " labelled" : ""}${part === "open" || part === "close" ? " delimiter" : ""}`;
      };
      const whose = (owner) => (owner === -1 ? "template" : role(owner) === undefined ? `owner ${owner}, which is no message` : `${role(owner)}, message ${owner + 1}`);
      const describe = (place) => {
        const [owner, part] = labels[place];
        const seen = [...named(row, place), ["Owner", whose(owner)], ["Label", part ? `labelled as ${PARTS[part] ?? part}` : "not labelled"]];
        for (const [model, values] of scores) {
          const value = values[place];
          if (value === null) continue;
          const nats = (value / 1000).toFixed(3);
          seen.push([WHEN[model] ? `${capital(WHEN[model])} training` : model,
            `loss ${nats}, log-probability ${value ? "\u2212" : ""}${nats} (${chance(value)})`, Math.exp(-value / 1000)]);
        }
        if (!scores.some(([, values]) => values[place] !== null)) {
          seen.push(["Loss and log-probability", part ? "not recorded" : "none: it is only read"]);
        }
        return seen;
      };
      const shadesOf = (place) => Object.fromEntries(scores.filter(([model, values]) => WHEN[model] && values[place] !== null)
        .map(([model, values]) => [`data-${WHEN[model]}`, shade(values[place])]));
      return [lossTable(row), tokenBox(`Tokens of ${row.id}`, row, kindOf, describe, shadesOf)];
    };
    const lossTable = (row) => {
      if (!row.loss?.length) return null;
      const models = Object.keys(row.logprobs);
      const head = make("tr", null, make("th", { scope: "col" }, "Mean loss"), make("th", { scope: "col", class: "number" }, "Tokens"),
        ...models.map((model) => make("th", { scope: "col", class: "number" }, when(model))));
      const lines = row.loss.map(([part, tokens, means]) => make("tr", null, make("th", { scope: "row" }, PARTS[part] ?? part),
        make("td", { class: "number" }, count(tokens)),
        ...models.map((model) => make("td", { class: "number" }, means[model] === undefined ? "none" : means[model].toFixed(3)))));
      return make("table", { class: "losses" }, make("thead", null, head), make("tbody", null, ...lines));
    };
    const rowSummary = (row) => [
      make("span", { class: "what mono" }, isolated(row.id)),
      make("span", { class: "how" }, `${row.source}, ${row.kind.replaceAll("_", " ")}, ${count(row.labelled)} of ${count(row.length)} tokens labelled`),
    ];

    // Cases and their answers.
    const outcome = (answer) => make("span", { class: answer.right ? "good" : "bad" },
      make("span", { "aria-hidden": "true" }, answer.right ? "\u2713" : "\u2717"), ` ${answer.verdict || "no verdict"}`);
    const shortName = (answer) => (answer.models.includes("merged") ? "merged" : answer.models[0]);
    const answerBody = (answer) => {
      const who = answer.models.join(", ");
      const kindOf = (place) => {
        const does = special[vocabulary[answer.tokens[place]][0]];
        return does ? `run special ${does === "stop token" ? "stop" : "delimiter"}` : "run";
      };
      const describe = (place) => {
        const [id] = vocabulary[answer.tokens[place]];
        const seen = [...named(answer, place), ["Owner", `answer of ${who}`]];
        if (special[id]) seen.push(["Meaning", special[id]]);
        return [...seen, ["Loss and log-probability", "not recorded for answers"]];
      };
      const ended = `${count(answer.length)} ${answer.length === 1 ? "token" : "tokens"}${answer.finish ? `, ended by ${answer.finish}` : ""}`;
      const opener = answer.opener ? `; the opening token had a probability of ${answer.opener} at the first position` : "";
      return make("div", { class: "answer" },
        make("h3", null, isolated(who), " ", outcome(answer)),
        answer.detail ? make("p", { class: "small" }, isolated(answer.detail)) : null,
        ...(answer.tokens.length ? [tokenBox(`Tokens of the answer of ${who}`, answer, kindOf, describe)]
          : answer.text ? [make("p", { class: "small quiet" }, "No token ids were recorded; the text:"), make("div", { class: "mono" }, isolated(answer.text))]
            : [make("p", { class: "small quiet" }, "An empty answer.")]),
        make("p", { class: "small quiet" }, `${ended}${opener}.`));
    };
    const caseBody = (each, chosen) => {
      const listed = (items, none) => (items.length ? items.flatMap((item, place) => [place ? "; " : "", make("code", null, isolated(item))]) : [none]);
      const left = each.tools_in_all - each.tools.length;
      const shown = chosen.model ? each.answers.filter((answer) => answer.models.includes(chosen.model)) : each.answers;
      return [
        make("dl", { class: "asked" },
          make("dt", null, "Case"), make("dd", null, make("code", null, isolated(each.id)), ` in ${each.category}${each.source ? `, asked by ${each.source}` : ""}`),
          make("dt", null, "Tools"), make("dd", null, ...listed(each.tools, "none"), left > 0 ? ` and ${count(left)} more` : ""),
          make("dt", null, "Expected"), make("dd", null, ...listed(each.expected, "no call"))),
        ...shown.map(answerBody),
      ];
    };
    const caseSummary = (each) => [
      make("span", { class: "what" }, isolated(each.request || each.id)),
      make("span", { class: "how" }, ...each.answers.map((answer) => make("b", null, `${shortName(answer)} `, outcome(answer)))),
    ];

    // A list: what its filters leave, twenty at a time, and how much that is.
    const PAGE = 20;
    const list = (name, items, fits, summary, body) => {
      const place = byId(name);
      if (!place) return;
      const [left, more, clear] = ["left", "more", "clear"].map((part) => byId(`${name}-${part}`));
      const controls = all(`#${name}-filters [data-filter]`);
      const chosen = () => Object.fromEntries(controls.filter((control) => control.type !== "radio" || control.checked)
        .map((control) => [control.dataset.filter, control.value]));
      const draw = (from, fitting, choices) => {
        const until = Math.min(from + PAGE, fitting.length);
        for (const item of fitting.slice(from, until)) {
          const details = make("details", { open: item === items[0] }, make("summary", null, ...summary(item)));
          const fill = () => { if (details.open && details.children.length === 1) details.append(make("div", { class: "inside" }, ...body(item, choices))); };
          details.addEventListener("toggle", fill);
          fill();
          place.append(make("li", null, details));
        }
        more.hidden = until >= fitting.length;
        more.textContent = `Show ${Math.min(PAGE, fitting.length - until)} more of ${count(fitting.length - until)}`;
        return until;
      };
      let fitting = items, drawn = 0, choices = {};
      const filter = () => {
        choices = chosen();
        fitting = items.filter((item) => fits(item, choices));
        place.replaceChildren();
        drawn = draw(0, fitting, choices);
        const any = Object.values(choices).some((choice) => choice !== "");
        clear.hidden = !any;
        left.textContent = any ? `${count(fitting.length)} of ${count(items.length)} match` : "";
      };
      more.addEventListener("click", () => {
        const first = drawn;
        drawn = draw(first, fitting, choices);
        place.children[first].querySelector("summary").focus();
      });
      clear.addEventListener("click", () => {
        for (const control of controls) { if (control.type === "radio") control.checked = control.value === ""; else control.value = ""; }
        filter();
        controls[0].focus();
      });
      for (const control of controls) control.addEventListener(control.type === "search" ? "input" : "change", filter);
      filter();
    };
    const textOf = new Map();
    const holds = (item, wanted, parts) => {
      if (!wanted) return true;
      if (!textOf.has(item)) textOf.set(item, parts(item).join("\n").toLowerCase());
      return textOf.get(item).includes(wanted.toLowerCase());
    };
    const joined = (tokens) => tokens.map(plain).join("");
    list("rows", island.rows, (row, by) => ["kind", "source"].every((key) => !by[key] || row[key] === by[key])
      && holds(row, by.text, (each) => [each.id, joined(each.tokens)]), rowSummary, rowBody);
    list("cases", island.cases, (each, by) => ["category", "source"].every((key) => !by[key] || each[key] === by[key])
      && each.answers.some((answer) => (!by.model || answer.models.includes(by.model))
        && (!by.verdict || (by.verdict === "not right" ? !answer.right : `=${answer.verdict}` === by.verdict)))
      && holds(each, by.text, (one) => [one.id, one.request, ...one.tools, ...one.expected, ...one.answers.flatMap((answer) =>
        [answer.text ?? joined(answer.tokens), answer.detail ?? ""])]), caseSummary, caseBody);
    for (const choice of all("[name=shade]")) choice.addEventListener("change", () => { byId("rows").dataset.shade = choice.value; });
  }

  root.dataset.ready = "yes";
});
})();

"use strict";
// Which rows of a listing are shown; without this script all of them are.

// Goes with the page: `address` is like window.location, `remember(hash)` puts it there. Gives what
// is to be done when the address has changed.
function start(page, address, remember) {
  const all = [];
  for (const listing of page.querySelectorAll(".listing")) {
    const form = listing.querySelector("form");
    const cards = [...listing.querySelectorAll(".card")];
    const { verdict, set, shown } = form.elements;

    function show() {
      let n = 0;
      for (const card of cards) {
        const { right, outcome, benchmark, category } = card.dataset;
        card.hidden = !["", right, outcome].includes(verdict.value)
          || !["", benchmark, category].includes(set.value);
        n += card.hidden ? 0 : 1;
      }
      shown.value = `${n} of ${cards.length} listed rows`;
    }

    function choose() {
      const given = new URLSearchParams(address.hash.slice(1));
      for (const select of [verdict, set]) {
        const value = given.get(select.name) ?? "";
        const there = [...select.options].some((option) => option.value === value);
        select.value = there ? value : "";
      }
      show();
    }

    form.addEventListener("change", () => {
      const chosen = [verdict, set].filter((select) => select.value);
      remember(`#${new URLSearchParams(chosen.map((select) => [select.name, select.value]))}`);
      show();
    });
    form.hidden = false;
    choose();
    all.push(choose);
  }
  return () => all.forEach((choose) => choose());
}

if (typeof document !== "undefined") {
  window.addEventListener("hashchange", start(document, window.location, (hash) => {
    try {
      window.history.replaceState(null, "", hash);
    } catch { /* forbidden to files by some browsers */ }
  }));
}

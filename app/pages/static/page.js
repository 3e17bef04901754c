// Shows what has changed: asks for a stamp, and where it is another one takes the page's content anew.
// Without this script the pages say the same, and are loaded anew by hand.
(() => {
  "use strict";
  const EVERY_MS = 3000, AT_MOST_MS = 30000;
  let stamp = document.body.dataset.stamp, wait = EVERY_MS, quiet = 0;

  function copyButtons() {
    for (const command of document.querySelectorAll(".command")) {
      if (command.querySelector("button")) continue;
      const text = command.querySelector("code").textContent;
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = "Copy";
      button.setAttribute("aria-label", `Copy: ${text}`);
      button.addEventListener("click", async () => {
        await navigator.clipboard.writeText(text);
        button.textContent = "Copied";
        setTimeout(() => { button.textContent = "Copy"; }, 1500);
      });
      command.querySelector("code").after(button);
    }
  }

  // Who reads, types or selects is not disturbed.
  function isInUse() {
    const free = [null, document.body, document.getElementById("main")];
    return !free.includes(document.activeElement) || !document.getSelection().isCollapsed;
  }

  async function look() {
    if (!document.hidden && !isInUse()) {
      try {
        const found = await (await fetch("stamp")).json();
        quiet += wait;
        if (found.stamp !== stamp || quiet >= AT_MOST_MS) {
          const answer = await fetch(location.href);
          if (answer.ok) {
            const page = new DOMParser().parseFromString(await answer.text(), "text/html");
            const open = new Set([...document.querySelectorAll("details[open]")].map((one) => one.id));
            for (const name of ["#main", "header"]) {
              document.querySelector(name).replaceWith(page.querySelector(name));
            }
            for (const one of document.querySelectorAll("details")) if (one.id && open.has(one.id)) one.open = true;
            copyButtons();
            stamp = found.stamp;
            quiet = 0;
          }
          wait = EVERY_MS;
        } else {
          wait = Math.min(wait * 1.3, AT_MOST_MS);
        }
      } catch {
        wait = AT_MOST_MS;
      }
    }
    setTimeout(look, wait);
  }

  copyButtons();
  setTimeout(look, wait);
})();

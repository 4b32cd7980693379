"use strict";

// A, B, T and S answer a question, where nobody is typing.
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName)) return;
  const button = document.querySelector(`[data-keys] [data-key="${CSS.escape(event.key.toLowerCase())}"]`);
  if (button) { event.preventDefault(); button.click(); }
});

// Enter sends, Shift and Enter begins a line.
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing && event.target.matches("[data-enter]")) {
    event.preventDefault();
    event.target.form.requestSubmit();
  }
});

document.addEventListener("htmx:afterSwap", (event) => {
  const message = document.querySelector("[data-enter]");
  if (message && event.detail.target.id === "turns") {
    message.value = "";
    message.focus();
    event.detail.target.lastElementChild?.scrollIntoView({ block: "nearest" });
  }
});

document.addEventListener("htmx:responseError", (event) => {
  const status = document.getElementById("status");
  status.textContent = event.detail.xhr.status === 401
    ? "The link has run out; ask for another." : "That failed; try again in a moment.";
});
document.addEventListener("htmx:sendError", () => {
  document.getElementById("status").textContent = "The server is out of reach; try again in a moment.";
});

document.addEventListener("click", (event) => {
  if (event.target.matches("[data-anew]")) {
    document.getElementById("turns").replaceChildren();
    document.getElementById("said").value = "[]";
  }
});

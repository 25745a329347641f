// Before anything is drawn: the theme that was chosen here, if one was; otherwise the system's holds.
"use strict";
try {
  const chosen = JSON.parse(localStorage.getItem("mobilemoe.theme"));
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
} catch {
  // Without storage there is nothing to remember.
}

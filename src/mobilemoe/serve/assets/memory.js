// Small things that this browser remembers: the theme, the last settings. Nothing fails where it may not.

export function recall(name, otherwise) {
  try {
    return JSON.parse(localStorage.getItem(`mobilemoe.${name}`)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

export function remember(name, value) {
  try {
    localStorage.setItem(`mobilemoe.${name}`, JSON.stringify(value));
  } catch {
    // It is forgotten when the page is closed.
  }
}

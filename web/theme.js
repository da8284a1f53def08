// Applies the kept theme before the first paint; a classic script in the head, because a
// module would run after the page was already shown in the other theme.
(() => {
  try {
    const theme = localStorage.getItem('sightline.theme');
    if (theme === 'light' || theme === 'dark') document.documentElement.dataset['theme'] = theme;
  } catch {
    // Storage can be forbidden for the site; the system's theme is used then.
  }
})();

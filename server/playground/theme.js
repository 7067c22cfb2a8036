// Sets the theme before the first paint. `lib/theme.js` changes it.
document.documentElement.dataset.theme = localStorage.getItem("tandem.theme") ?? "auto";

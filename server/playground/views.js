// The views of the page, in the order of its navigation. A view is a module that exports
// `View`, a component for the main area, and may export `Sidebar`, one for the list at its side.
// Both get `{ rest, active }`: what the address names in the view, and whether it is on show.
export const VIEWS = [
  { id: "chat", label: "Chat", load: () => import("./chat/view.js") },
  { id: "images", label: "Images", load: () => import("./images/view.js") },
  { id: "models", label: "Models", load: () => import("./models/view.js") },
];

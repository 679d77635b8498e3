// The key that the server wants, where it wants one: asked for once, kept in this tab's session only.

const NAME = "nvp-key";
let asking = null;

export const key = () => sessionStorage.getItem(NAME);

export const headers = () => (key() ? { Authorization: `Bearer ${key()}` } : {});

// Asks people; true where there is a key afterwards. Several who ask at once share one dialog.
export function askForKey(why) {
  asking ??= open(why).finally(() => { asking = null; });
  return asking;
}

function open(why) {
  const dialog = document.getElementById("key-dialog");
  const input = document.getElementById("key-input");
  document.getElementById("key-why").textContent = why;
  document.getElementById("key-forget").hidden = !key();
  input.value = "";
  dialog.returnValue = "cancel";
  dialog.showModal();
  input.focus();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(settle(dialog.returnValue, input)), { once: true });
  });
}

function settle(choice, input) {
  const given = input.value.trim();
  input.value = "";
  if (choice === "forget") sessionStorage.removeItem(NAME);
  if (choice === "use" && given) sessionStorage.setItem(NAME, given);
  showState();
  return choice === "use" && given !== "";
}

export function showState() {
  document.getElementById("key-button").textContent = key() ? "Key: set" : "Key";
}

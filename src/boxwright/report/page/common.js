// What all parts use: the data, elements, colours, and texts made safe for plots.
const DATA = JSON.parse(document.getElementById('data').textContent);
const root = document.documentElement;
const byId = (id) => document.getElementById(id);
const darkWanted = matchMedia('(prefers-color-scheme: dark)');
const redraws = []; // of what depends on colours or width

// Plots read a little HTML and entities in their texts: names must stay names.
const safe = (text) => String(text).replace(/[&<>]/g, (c) => ({ '&': '&amp;', '<': '&lt;', '>': '&gt;' }[c]));
const cut = (text, most) => {
  const letters = Array.from(String(text));
  return letters.length > most ? letters.slice(0, most - 1).join('') + '…' : letters.join('');
};
const color = (name) => getComputedStyle(root).getPropertyValue('--' + name).trim();
const isNarrow = () => innerWidth < 640;

function option(select, value, text) {
  const made = document.createElement('option');
  made.value = value;
  made.textContent = text;
  select.append(made);
}

function say(text) {
  byId('said').textContent = text;
}

function isDark() {
  return root.dataset.theme ? root.dataset.theme === 'dark' : darkWanted.matches;
}

function redrawAll() {
  for (const draw of redraws) draw();
}

function showTheme() {
  const button = byId('theme');
  button.textContent = isDark() ? 'Light' : 'Dark';
  button.setAttribute('aria-pressed', String(isDark()));
  button.setAttribute('aria-label', isDark() ? 'Switch to light colours' : 'Switch to dark colours');
}

function startTheme() {
  showTheme();
  byId('theme').addEventListener('click', () => {
    root.dataset.theme = isDark() ? 'light' : 'dark';
    try {
      localStorage.setItem('boxwright-theme', root.dataset.theme);
    } catch (error) { /* it holds for this visit, then */ }
    showTheme();
    redrawAll();
  });
  darkWanted.addEventListener('change', () => {
    showTheme();
    redrawAll();
  });
}

// Tables that sort by a click on a head, buttons that copy, and the mark of the current section.
function sortKey(cell) {
  const text = cell.dataset.sort !== undefined ? cell.dataset.sort : cell.textContent.trim();
  const number = text === '' ? NaN : Number(text);
  return { text, number, none: text === '' || text === '–' };
}

function sortBy(table, column, falling) {
  const body = table.tBodies[0];
  const rows = Array.from(body.rows, (row) => ({ row, key: sortKey(row.cells[column]) }));
  const known = rows.filter((r) => !r.key.none);
  const numeric = known.every((r) => !Number.isNaN(r.key.number));
  const sign = falling ? -1 : 1;
  known.sort((a, b) => sign * (numeric
    ? a.key.number - b.key.number
    : a.key.text.localeCompare(b.key.text, undefined, { numeric: true })));
  body.append(...known.map((r) => r.row), ...rows.filter((r) => r.key.none).map((r) => r.row));
}

function startTables() {
  for (const table of document.querySelectorAll('table.sortable')) {
    const heads = Array.from(table.tHead.rows[0].cells);
    heads.forEach((head, column) => {
      const button = document.createElement('button');
      button.type = 'button';
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener('click', () => {
        const before = head.getAttribute('aria-sort');
        // Figures begin with the largest, names with the first.
        const falling = before ? before === 'ascending' : head.classList.contains('num');
        for (const other of heads) other.removeAttribute('aria-sort');
        head.setAttribute('aria-sort', falling ? 'descending' : 'ascending');
        sortBy(table, column, falling);
      });
    });
  }
}

function copyByHand(text) {
  const area = document.createElement('textarea');
  area.value = text;
  area.style.position = 'fixed';
  area.style.opacity = '0';
  document.body.append(area);
  area.select();
  const done = document.execCommand('copy');
  area.remove();
  return done;
}

function startCopies() {
  for (const button of document.querySelectorAll('button.copy')) {
    button.addEventListener('click', async () => {
      let done = true;
      try {
        await navigator.clipboard.writeText(button.dataset.copy);
      } catch (error) {
        done = copyByHand(button.dataset.copy);
        button.focus();
      }
      const text = done ? 'Copied' : 'Not copied';
      button.textContent = text;
      say(text);
      setTimeout(() => { button.textContent = 'Copy'; }, 1600);
    });
  }
}

function startNavigation() {
  const links = new Map();
  for (const link of document.querySelectorAll('nav a')) links.set(link.hash.slice(1), link);
  const sections = Array.from(document.querySelectorAll('main > section'));
  const mark = () => {
    const ended = innerHeight + scrollY >= document.body.scrollHeight - 4;
    const above = sections.filter((s) => s.getBoundingClientRect().top < innerHeight * 0.3);
    const current = ended ? sections[sections.length - 1] : above[above.length - 1] || sections[0];
    for (const [id, link] of links) {
      if (current && id === current.id) link.setAttribute('aria-current', 'true');
      else link.removeAttribute('aria-current');
    }
  };
  addEventListener('scroll', mark, { passive: true });
  mark();
}

// Pictures with boxes: the source on one side, a file on the other.
const SVG = 'http://www.w3.org/2000/svg';
const LEAST_OVERLAP = 0.5;

function overlap(a, b) {
  const width = Math.min(a[2], b[2]) - Math.max(a[0], b[0]);
  const height = Math.min(a[3], b[3]) - Math.max(a[1], b[1]);
  if (width <= 0 || height <= 0) return 0;
  const both = width * height;
  return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both);
}

// Returns for both sides which boxes have a partner; the best scores choose first.
function partners(left, right) {
  const paired = [left.map(() => false), right.map(() => false)];
  const order = left.map((_, i) => i).sort((a, b) => left[b][4] - left[a][4]);
  for (const i of order) {
    let best = -1;
    let most = LEAST_OVERLAP;
    right.forEach((box, j) => {
      if (paired[1][j] || box[5] !== left[i][5]) return;
      const value = overlap(left[i], box);
      if (value >= most) { most = value; best = j; }
    });
    if (best >= 0) { paired[0][i] = true; paired[1][best] = true; }
  }
  return paired;
}

function part(parent, kind, attributes) {
  const made = document.createElementNS(SVG, kind);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  parent.append(made);
  return made;
}

function rectangle(parent, box, kind) {
  return part(parent, 'rect', {
    class: kind, x: box[0], y: box[1], width: Math.max(box[2] - box[0], 0), height: Math.max(box[3] - box[1], 0),
  });
}

function tag(group, box, text, kind, unit, size) {
  const width = text.length * 6.4 * unit + 8 * unit;
  const height = 16 * unit;
  const x = Math.max(0, Math.min(box[0], size[1] - width));
  const y = box[1] - height >= 0 ? box[1] - height : box[1];
  part(group, 'rect', { class: 'tag' + kind, x, y, width, height, rx: 2 * unit });
  const made = part(group, 'text', { x: x + 4 * unit, y: y + height / 2 });
  made.style.fontSize = 11 * unit + 'px';
  made.textContent = text;
}

function startPictures() {
  const data = DATA.pictures;
  if (!data || !byId('viewer')) return;
  const select = byId('picture');
  const file = byId('picture-file');
  const slider = byId('picture-score');
  const truth = byId('picture-truth');
  const names = byId('picture-names');
  data.items.forEach((item, i) => option(select, String(i), item.name));
  data.files.forEach((name, i) => { if (i > 0) option(file, String(i), name); });
  const wanted = data.chosen > 0 ? data.chosen : Math.min(1, data.files.length - 1);
  if (wanted > 0) file.value = String(wanted);
  truth.disabled = data.items.every((item) => item.truth === null);

  const drawPane = (number, item, boxes, paired, name) => {
    const pane = byId('pane-' + number);
    const [height, width] = item.size;
    const image = document.createElement('img');
    image.alt = item.name;
    image.width = width;
    image.height = height;
    image.src = 'data:image/jpeg;base64,' + item.jpeg;
    const drawing = document.createElementNS(SVG, 'svg');
    drawing.setAttribute('viewBox', '0 0 ' + width + ' ' + height);
    drawing.setAttribute('role', 'img');
    drawing.setAttribute('aria-label', boxes.length + ' boxes of ' + name + ' in ' + item.name);
    pane.replaceChildren(image, drawing);
    const unit = width / Math.max(pane.clientWidth, 1); // pixels of the picture in one of the screen
    if (truth.checked) for (const box of item.truth || []) {
      const group = part(drawing, 'g', {});
      rectangle(group, box, 'halo');
      rectangle(group, box, 'box truth');
    }
    boxes.forEach((box, i) => {
      const alone = paired[i] ? '' : ' alone';
      const group = part(drawing, 'g', {});
      rectangle(group, box, 'halo');
      rectangle(group, box, 'box' + alone);
      rectangle(group, box, 'hit');
      part(group, 'title', {}).textContent = data.classes[box[5]] + ', score ' + box[4].toFixed(3) + (alone ? ', no partner' : '');
    });
    const above = part(drawing, 'g', { class: 'tags' }); // names lie over all boxes, the best on top
    if (names.checked) for (let i = boxes.length - 1; i >= 0; i -= 1) {
      const text = cut(data.classes[boxes[i][5]], 18) + ' ' + boxes[i][4].toFixed(2);
      tag(above, boxes[i], text, paired[i] ? '' : ' alone', unit, item.size);
    }
    byId('pane-' + number + '-text').textContent = name;
  };

  const draw = () => {
    const item = data.items[Number(select.value)];
    const other = Number(file.value || 0);
    const least = Number(slider.value);
    const shown = (index) => (item.found[index] || []).filter((box) => box[4] >= least);
    const sides = [shown(0), shown(other)];
    const paired = partners(sides[0], sides[1]);
    drawPane(0, item, sides[0], paired[0], data.files[0]);
    drawPane(1, item, sides[1], paired[1], data.files[other] || '');
    byId('picture-score-text').textContent = least.toFixed(2);
    const alone = (number) => paired[number].filter((p) => !p).length;
    const known = item.truth === null ? '' : ' ' + item.truth.length + ' objects are labelled.';
    byId('picture-count').textContent = paired[0].filter(Boolean).length + ' boxes have a partner; '
      + alone(0) + ' only in ' + data.files[0] + ', ' + alone(1) + ' only in ' + (data.files[other] || 'the other') + '.' + known;
  };
  const step = (by) => {
    select.value = String((Number(select.value) + by + data.items.length) % data.items.length);
    draw();
  };
  byId('picture-back').addEventListener('click', () => step(-1));
  byId('picture-on').addEventListener('click', () => step(1));
  for (const control of [select, file, truth, names]) control.addEventListener('change', draw);
  slider.addEventListener('input', draw);
  redraws.push(draw);
  draw();
}

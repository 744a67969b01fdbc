// What all plots have in common: layout, colours by file, marks by runtime.
const SYMBOLS = { onnxruntime: 'circle', openvino: 'square', pytorch: 'diamond' };
const MORE_SYMBOLS = ['triangle-up', 'triangle-down', 'pentagon', 'star'];
const DASHES = ['solid', 'dash', 'dot', 'dashdot'];
const runtimes = [...new Set(DATA.series.map((s) => s.runtime))];
const manyRuntimes = runtimes.filter(Boolean).length > 1;

const seriesColor = (series) => color('c' + (series.color % 7));
const dash = (series) => DASHES[series.variant % DASHES.length];
const title = (series) => series.label + (manyRuntimes && series.runtime ? ' · ' + series.runtime : '');

function symbol(series) {
  const name = SYMBOLS[series.runtime] || MORE_SYMBOLS[runtimes.indexOf(series.runtime) % MORE_SYMBOLS.length];
  if (series.rejected) return 'x-thin-open';
  return name + (series.variant % 2 ? '-open' : '');
}

function tick(series) {
  const most = isNarrow() ? 22 : 40;
  const runtime = manyRuntimes && series.runtime ? series.runtime : '';
  const mark = series.chosen ? '<b>' + safe(cut(series.label, most)) + '</b>' : safe(cut(series.label, most));
  return mark + (runtime ? (isNarrow() ? '<br>' : ' · ') + safe(runtime) : '');
}

function axis(text, more) {
  return Object.assign({
    title: { text, standoff: 12, font: { size: isNarrow() ? 11 : 12.5 } },
    gridcolor: color('grid'), linecolor: color('line'), zerolinecolor: color('line'), zeroline: false,
    automargin: true, ticks: '',
  }, more);
}

function layout(more) {
  return Object.assign({
    paper_bgcolor: 'rgba(0,0,0,0)', plot_bgcolor: 'rgba(0,0,0,0)',
    font: { family: getComputedStyle(document.body).fontFamily, size: isNarrow() ? 11 : 12.5, color: color('text') },
    margin: { l: 8, r: 12, t: 8, b: 8 },
    hoverlabel: { bgcolor: color('page'), bordercolor: color('line'), font: { color: color('text') }, align: 'left' },
    legend: { orientation: 'h', x: 0, y: 1.02, xanchor: 'left', yanchor: 'bottom', bgcolor: 'rgba(0,0,0,0)' },
    dragmode: matchMedia('(pointer: coarse)').matches ? false : 'zoom',
    hovermode: 'closest',
    modebar: { bgcolor: 'rgba(0,0,0,0)', color: color('muted'), activecolor: color('text') },
  }, more);
}

const CONFIG = {
  displaylogo: false, displayModeBar: 'hover',
  modeBarButtons: [['toImage', 'resetScale2d']], // named one by one: some of plotly's send data away
};

// Draws now and whenever the colours change; `make` returns [traces, layout], or null for nothing.
function plot(id, make) {
  const place = byId(id);
  if (!place || typeof Plotly === 'undefined') return () => {};
  const draw = () => {
    const made = make();
    if (!made) return;
    place.style.height = made[1].height + 'px';
    made[1].width = place.clientWidth;
    Plotly.react(place, made[0], made[1], CONFIG);
    place.dataset.drawn = String(Number(place.dataset.drawn || 0) + 1);
  };
  redraws.push(draw);
  draw();
  return draw;
}

// A row for each file on the y axis, the first on top.
function rowAxis(count, texts) {
  return axis('', {
    tickmode: 'array', tickvals: Array.from({ length: count }, (_, i) => i), ticktext: texts,
    range: [count - 0.4, -0.6], showgrid: false, fixedrange: true,
  });
}

// Distributions of the calls, and the spans stacked.
const SPAN_COLORS = { read: 'c6', preprocess: 'c3', copy_in: 'c5', infer: 'c1', copy_out: 'c4', postprocess: 'c2' };

function startDistributions() {
  const data = DATA.latency;
  const spans = byId('span');
  const settings = byId('setting');
  if (!data || !spans) return;
  const main = data.rows[0].main;
  for (const name of data.spans) {
    if (data.rows.some((r) => (r.samples[name] || []).length)) option(spans, name, name);
  }
  spans.value = main;
  data.settings.forEach((name, i) => option(settings, String(i), name));
  byId('setting-label').hidden = data.settings.length < 2;
  const draw = plot('latency-plot', () => {
    const rows = data.rows.filter((r) => r.setting === Number(settings.value) && (r.samples[spans.value] || []).length);
    const traces = rows.map((row, place) => {
      const series = DATA.series[row.series];
      const paint = seriesColor(series);
      const name = safe(title(series)) + (row.noisy ? ' (noisy)' : '');
      return {
        type: 'box', orientation: 'h', name, x: row.samples[spans.value], y: row.samples[spans.value].map(() => place),
        boxpoints: 'all', jitter: 0.55, pointpos: 0, width: 0.62, hoveron: 'boxes', hoverinfo: 'x+name',
        line: { color: paint, width: 1.5 }, fillcolor: 'rgba(0,0,0,0)',
        marker: { color: paint, size: 4, opacity: 0.45 },
      };
    });
    return [traces, layout({
      height: 80 + rows.length * (isNarrow() && manyRuntimes ? 46 : 36), showlegend: false,
      xaxis: axis(spans.value + ', ms'),
      yaxis: rowAxis(rows.length, rows.map((r) => tick(DATA.series[r.series]) + (r.noisy ? ' (noisy)' : ''))),
    })];
  });
  spans.addEventListener('change', draw);
  settings.addEventListener('change', draw);
}

function startSpans() {
  const data = DATA.latency;
  const settings = byId('setting');
  if (!data || !byId('spans-plot')) return;
  const draw = plot('spans-plot', () => {
    const rows = data.rows.filter((r) => r.setting === Number(settings.value || 0) && 'total' in r.p50);
    const traces = data.spans.filter((s) => s !== 'total' && rows.some((r) => r.p50[s])).map((span) => ({
      type: 'bar', orientation: 'h', name: span, x: rows.map((r) => r.p50[span] || 0), y: rows.map((_, i) => i),
      marker: { color: color(SPAN_COLORS[span]) }, hoverinfo: 'text', textposition: 'none',
      text: rows.map((r) => safe(title(DATA.series[r.series])) + '<br>' + span + ': ' + (r.p50[span] || 0) + ' ms'),
    }));
    return [traces, layout({
      height: 110 + rows.length * (isNarrow() && manyRuntimes ? 42 : 30), barmode: 'stack', bargap: 0.35, showlegend: true,
      legend: { orientation: 'h', x: 0, y: 1.02, xanchor: 'left', yanchor: 'bottom', traceorder: 'normal' },
      xaxis: axis('ms', { rangemode: 'tozero' }),
      yaxis: rowAxis(rows.length, rows.map((r) => tick(DATA.series[r.series]))),
    })];
  });
  settings.addEventListener('change', draw);
}

// Precision over recall, AP by class, and accuracy against latency.
const FEW_CLASSES = 20;

function startCurves() {
  const data = DATA.accuracy;
  const select = byId('curve-class');
  if (!data || !select) return;
  option(select, 'all', 'all classes');
  data.classes.forEach((name, i) => {
    if (data.rows.some((r) => r.curves[i] !== null)) option(select, String(i), name);
  });
  const recall = Array.from({ length: 101 }, (_, i) => i / 100);
  const draw = plot('curves-plot', () => {
    const traces = [];
    for (const row of data.rows) {
      const place = select.value === 'all' ? row.all : row.curves[Number(select.value)];
      if (place === null || place === undefined) continue;
      const series = DATA.series[row.series];
      const values = data.curves[place].map((v) => v / 1000);
      traces.push({
        type: 'scatter', mode: 'lines', x: recall.slice(0, values.length), y: values, name: safe(title(series)),
        line: { color: seriesColor(series), dash: dash(series), width: series.chosen ? 3 : 1.8 },
        hoverinfo: 'text',
        text: values.map((v, i) => safe(title(series)) + '<br>precision ' + v.toFixed(3) + ' at recall ' + recall[i].toFixed(2)),
      });
    }
    const height = (isNarrow() ? 340 : 420) + Math.ceil(traces.length / (isNarrow() ? 1 : 4)) * 20;
    return [traces, layout({
      height, xaxis: axis('recall', { range: [0, 1.005] }), yaxis: axis('precision', { range: [0, 1.02] }),
      showlegend: true,
    })];
  });
  select.addEventListener('change', draw);
}

function classOrder(data, how) {
  const order = data.classes.map((_, i) => i);
  const lowest = (i) => Math.min(...data.rows.map((r) => (r.ap[i] === null ? 2 : r.ap[i])));
  const loss = (i) => {
    const first = data.rows[0].ap[i];
    return first === null ? -2 : Math.max(...data.rows.map((r) => (r.ap[i] === null ? -2 : first - r.ap[i])));
  };
  if (how === 'objects') order.sort((a, b) => data.objects[b] - data.objects[a]);
  if (how === 'lowest') order.sort((a, b) => lowest(a) - lowest(b));
  if (how === 'loss') order.sort((a, b) => loss(b) - loss(a));
  if (how === 'name') order.sort((a, b) => data.classes[a].localeCompare(data.classes[b], undefined, { numeric: true }));
  return order;
}

function startClasses() {
  const data = DATA.accuracy;
  if (!data || !byId('classes-plot')) return;
  const order = byId('class-order');
  const all = byId('class-all');
  byId('class-all-label').hidden = data.classes.length <= FEW_CLASSES;
  all.nextElementSibling.textContent = 'all ' + data.classes.length + ' classes';
  // The source and the file to ship (else the first two) are shown; the others wait in the legend.
  const chosen = DATA.series.find((s) => s.chosen);
  const main = [(s) => s.file === 'source', (s) => s.chosen, (s) => chosen && s.file === chosen.file]
    .map((fits) => data.rows.find((r) => fits(DATA.series[r.series]))).filter(Boolean).slice(0, 2);
  const visible = new Set((main.length > 1 ? main : data.rows.slice(0, 2)).map((r) => r.series));
  const place = byId('classes-plot');
  const draw = plot('classes-plot', () => {
    for (const trace of place.data || []) { // what the reader has turned on or off stays so
      if (trace.visible === 'legendonly') visible.delete(trace.meta);
      else visible.add(trace.meta);
    }
    const chosen = classOrder(data, order.value).slice(0, all.checked ? undefined : FEW_CLASSES);
    const most = isNarrow() ? 16 : 28;
    const traces = data.rows.map((row) => {
      const series = DATA.series[row.series];
      return {
        type: 'bar', orientation: 'h', name: safe(title(series)), meta: row.series,
        visible: visible.has(row.series) ? true : 'legendonly',
        x: chosen.map((i) => row.ap[i]), y: chosen.map((_, place) => place),
        marker: {
          color: seriesColor(series),
          pattern: { shape: series.variant % 2 ? '/' : '', fillmode: 'overlay', fgcolor: color('page'), size: 5 },
        },
        hoverinfo: 'text', textposition: 'none',
        text: chosen.map((i) => safe(data.classes[i]) + '<br>' + safe(title(series)) + ': '
          + (row.ap[i] === null ? 'none' : row.ap[i].toFixed(4)) + '<br>' + data.objects[i] + ' objects'),
      };
    });
    const shown = Math.max(1, traces.filter((t) => t.visible === true).length);
    const legend = Math.ceil(traces.length / (isNarrow() ? 1 : 4)) * 22;
    return [traces, layout({
      height: 90 + legend + chosen.length * Math.max(20, 11 * shown + 6), barmode: 'group', bargap: 0.28, showlegend: true,
      xaxis: axis('AP50-95', { rangemode: 'tozero', fixedrange: true }),
      yaxis: rowAxis(chosen.length, chosen.map((i) => safe(cut(data.classes[i], most)))),
    })];
  });
  order.addEventListener('change', draw);
  all.addEventListener('change', draw);
}

function intervalText(interval, digits) {
  return interval ? ' (' + interval[0].toFixed(digits) + ' to ' + interval[1].toFixed(digits) + ')' : '';
}

// Differences of less than a hundredth shall not look like cliffs.
function worthRange(points) {
  const values = points.flatMap((p) => [p.y, ...(p.y_interval || [])]);
  const low = Math.min(...values);
  const high = Math.max(...values);
  const pad = Math.max((high - low) * 0.08, (0.02 - (high - low)) / 2);
  return [low - pad, high + pad];
}

function startTradeoff() {
  const points = DATA.tradeoff;
  plot('tradeoff-plot', () => {
    const onFront = points.filter((p) => p.front).sort((a, b) => a.x - b.x || a.y - b.y);
    const line = {
      type: 'scatter', mode: 'lines', name: 'front', x: onFront.map((p) => p.x), y: onFront.map((p) => p.y),
      line: { color: color('muted'), width: 1.5, shape: 'hv', dash: 'dot' }, hoverinfo: 'skip',
    };
    const error = (value, interval, paint) => (interval ? {
      type: 'data', symmetric: false, array: [interval[1] - value], arrayminus: [value - interval[0]],
      color: paint, thickness: 1, width: 3,
    } : { visible: false });
    const marks = points.map((p) => {
      const series = DATA.series[p.series];
      const paint = seriesColor(series);
      const facts = [safe(series.label + (series.runtime ? ' · ' + series.runtime : '')),
        p.measure + ' ' + p.y.toFixed(4) + intervalText(p.y_interval, 4),
        p.span + ' p50 ' + p.x.toFixed(2) + ' ms' + intervalText(p.x_interval, 2)];
      if (p.front) facts.push('on the front');
      if (series.rejected) facts.push('rejected: must not be shipped');
      if (p.noisy) facts.push('noisy: do not rely on the latency');
      return {
        type: 'scatter', mode: p.front && !isNarrow() ? 'markers+text' : 'markers', name: safe(title(series)) + (series.chosen ? ' (ship)' : ''),
        textposition: 'top right', textfont: { color: paint },
        x: [p.x], y: [p.y], error_x: error(p.x, p.x_interval, paint), error_y: error(p.y, p.y_interval, paint),
        marker: { symbol: symbol(series), color: paint, size: series.chosen ? 15 : 11, line: { color: series.variant % 2 || series.rejected ? paint : color('page'), width: series.variant % 2 || series.rejected ? 2.5 : 1 } },
        text: [p.front ? '  ' + safe(cut(title(series), 32)) : ''], hovertext: [facts.join('<br>')], hoverinfo: 'text',
      };
    });
    const span = points.every((p) => p.span === 'total') ? 'latency' : 'inference';
    const height = (isNarrow() ? 340 : 440) + Math.ceil(marks.length / (isNarrow() ? 1 : 4)) * 20;
    return [[line, ...marks], layout({
      height, showlegend: true, xaxis: axis(span + ', p50 ms'), yaxis: axis(points[0].measure, { range: worthRange(points) }),
    })];
  });
}

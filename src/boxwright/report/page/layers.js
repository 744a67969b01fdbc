// The most sensitive layers, and what the accuracy is with more of them in float.
const MOST_LAYERS = 25;

function startLayers() {
  DATA.budgets.forEach((budget, number) => {
    const layers = budget.layers.slice(0, MOST_LAYERS);
    const bars = (kept) => ({
      type: 'bar', orientation: 'h', name: kept ? 'stays in float' : 'INT8',
      x: layers.map((l) => (l[2] === kept ? l[1] : null)), y: layers.map((_, i) => i),
      marker: {
        color: color(kept ? 'c2' : 'c1'),
        pattern: { shape: kept ? '/' : '', fillmode: 'overlay', fgcolor: color('page'), size: 6 },
      },
      hoverinfo: 'text', textposition: 'none',
      text: layers.map((l) => safe(l[0]) + '<br>error ' + l[1] + (kept ? '<br>stays in float' : '')),
    });
    if (layers.length) {
      plot('layers-plot-' + number, () => [[bars(true), bars(false)], layout({
        height: 110 + layers.length * 21, barmode: 'overlay', bargap: 0.3, showlegend: true,
        xaxis: axis('error' + (budget.layers.length > layers.length ? ' (the first ' + layers.length + ' of ' + budget.layers.length + ')' : ''), { rangemode: 'tozero' }),
        yaxis: rowAxis(layers.length, layers.map((l) => safe(cut(l[0], isNarrow() ? 16 : 32)))),
      })]);
    }
    if (budget.tried.length > 1) startTried(budget, number);
  });
}

function startTried(budget, number) {
  plot('tried-plot-' + number, () => {
    const counts = budget.tried.map((t) => t[0]);
    const taken = budget.tried.filter((t) => t[0] === budget.chosen);
    const traces = [{
      type: 'scatter', mode: 'lines+markers', name: 'tried', x: counts, y: budget.tried.map((t) => t[1]),
      line: { color: color('c1'), width: 2 }, marker: { size: 8, color: color('c1') }, hoverinfo: 'text',
      text: budget.tried.map((t) => t[0] + ' layers in float<br>' + budget.measure + ' ' + (t[1] === null ? 'none' : t[1].toFixed(4))),
    }, {
      type: 'scatter', mode: 'markers', name: 'taken', x: taken.map((t) => t[0]), y: taken.map((t) => t[1]),
      marker: { symbol: 'circle-open', size: 18, color: color('c2'), line: { width: 2.5, color: color('c2') } }, hoverinfo: 'skip',
    }];
    const across = [Math.min(...counts), Math.max(...counts)];
    const level = (name, value, style, paint) => traces.push({
      type: 'scatter', mode: 'lines', name, x: across, y: [value, value],
      line: { color: color(paint), dash: style, width: 1.5 }, hoverinfo: 'name+y',
    });
    if (budget.reference !== null) {
      level('FP32', budget.reference, 'dash', 'c0');
      if (budget.max_drop !== null) level('budget', budget.reference - budget.max_drop, 'dot', 'alone');
    }
    return [traces, layout({
      height: isNarrow() ? 320 : 340, showlegend: true,
      xaxis: axis('layers in float'), yaxis: axis(budget.measure, { tickformat: '.3f' }),
    })];
  });
}

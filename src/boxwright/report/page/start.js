// Starts every part, and prepares paper: light colours, and nothing folded away.
startTheme();
startTables();
startCopies();
startNavigation();
startCurves();
startClasses();
startTradeoff();
startDistributions();
startSpans();
startLayers();
startPictures();

let wasNarrow = isNarrow();
addEventListener('resize', () => {
  if (isNarrow() !== wasNarrow) { wasNarrow = isNarrow(); redrawAll(); }
});

const beforePaper = { theme: undefined, closed: [] };
addEventListener('beforeprint', () => {
  beforePaper.theme = root.dataset.theme;
  beforePaper.closed = Array.from(document.querySelectorAll('details:not([open])'));
  for (const details of beforePaper.closed) details.open = true;
  root.dataset.theme = 'light';
  redrawAll();
});
addEventListener('afterprint', () => {
  for (const details of beforePaper.closed) details.open = false;
  if (beforePaper.theme) root.dataset.theme = beforePaper.theme;
  else delete root.dataset.theme;
  redrawAll();
});
root.dataset.ready = 'true';

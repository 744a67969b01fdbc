(function () {
  'use strict';
  document.documentElement.classList.add('js');
  try {
    var saved = localStorage.getItem('boxwright-theme');
    if (saved === 'light' || saved === 'dark') document.documentElement.dataset.theme = saved;
  } catch (error) { /* a page of a file may have no storage */ }
}());

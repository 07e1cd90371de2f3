// An application of egg in one process, as its own documents start it without its cluster. What it
// writes while it runs goes to a folder of the test.
'use strict';

const { start } = require('egg');

start({ baseDir: `${__dirname}/egg`, mode: 'single' }).then((application) => {
  application.listen(0, '127.0.0.1');
});

'use strict';

const folder = process.env.TEST_FOLDER;

module.exports = {
  keys: 'of the test',
  rundir: `${folder}/run`,
  logger: { dir: `${folder}/logs`, disableConsoleAfterReady: true, consoleLevel: 'NONE' },
};

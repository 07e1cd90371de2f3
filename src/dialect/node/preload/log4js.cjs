// What log4js needs under a primary that is not a Node program (clusterlb --preload).
//
// In a worker of node:cluster log4js opens no appender. It sends each line to the primary, where
// the program's own log4js is expected to write it. Under clusterlb no program reads messages
// there, so each worker writes its own lines, as log4js does with `disableClustering: true`. A
// configuration that sets this option keeps its value. With a companion a program does read them.
(() => {
  const { CLUSTERLB_PRELOAD: own, CLUSTERLB_COMPANION: isRead } = process.env;
  if (!own || isRead || !require('cluster').isWorker) return;
  const { _extensions: loaders } = require('module');
  const { '.js': load } = loaders;
  loaders['.js'] = function (module, file, ...rest) {
    const result = Reflect.apply(load, this, [module, file, ...rest]);
    if (file.endsWith('/log4js/lib/configuration.js')) {
      // Absent in versions before 4, which always write in the primary.
      module.exports.addPreProcessingListener?.((configuration) => {
        configuration.disableClustering ??= true;
      });
    }
    return result;
  };
})();

'use strict';

module.exports = ({ router }) => {
  router.get('/hello/:name', async (context) => {
    context.body = `hello ${context.params.name}`;
  });
};

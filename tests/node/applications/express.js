// Routes, a JSON body, middleware and an error handler on express.
'use strict';

const express = require('express');

const application = express();
application.use(express.json());
application.use((request, response, next) => {
  response.set('X-Worker', String(process.pid));
  next();
});
application.get('/hello/:name', (request, response) => {
  response.send(`hello ${request.params.name}`);
});
application.post('/sum', (request, response) => {
  response.json({ sum: request.body.reduce((sum, next) => sum + next, 0) });
});
application.get('/fail', () => {
  throw new Error('on purpose');
});
// By the number of its arguments express knows that it is for errors.
application.use((error, request, response, next) => {
  response.status(500).send(error.message);
});
application.listen(0, '127.0.0.1');

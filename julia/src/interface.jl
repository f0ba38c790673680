# What Python calls (pyjuice_lvd/circuit.py): positional arguments, indices from 0, arrays that belong to the caller.

mutual_information_job(X, categories, pseudocount) = MutualInformationJob(X; categories=categories, pseudocount=pseudocount)

mutual_information(job::MutualInformationJob) = job.mi

hclt_circuit(mi, latents, categories, heads, perturbation, seed) =
    hclt(chow_liu_tree(mi); latents=latents, categories=categories, heads=heads, perturbation=perturbation, seed=seed)

"The circuit's arrays, in the order of its constructor; the parameters are shared with the circuit."
circuit_arrays(c::Circuit) = (c.num_vars, c.kind, c.variable, c.categories, c.param_start, c.param_stride, c.success,
                              c.child_start, c.child, c.weight, c.leaf, c.heads)

"A circuit of its own from borrowed arrays."
circuit_of(num_vars, arrays...) = Circuit(num_vars, map(copy, arrays)...)

circuit_size(c::Circuit) = (c.num_vars, num_heads(c), num_units(c), num_edges(c), num_params(c))

plan_of(c::Circuit, soft) = Plan(c; soft=soft)

"Fills `out`, (heads, samples), with the log-likelihoods of all heads, or, where it has one row, of head `head`."
log_likelihoods!(out, plan::Plan, X, head) = (log_likelihood!(out, plan, X, head < 0 ? (1:num_heads(plan.circuit)) :
                                              (head + 1:head + 1)); nothing)

em_job(c, X, head_of, weights, epochs, batch_size, first_step, last_step, pseudocount, shuffle, seed) =
    EMJob(c, X, head_of .+ Int32(1); weights=weights, epochs=epochs, batch_size=batch_size, step_size=(first_step, last_step),
          pseudocount=pseudocount, shuffle=shuffle, seed=seed)

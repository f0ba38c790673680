# What Python calls (pyjuice_lvd/circuit/circuit.py): positional arguments, indices from 0, arrays that belong to the caller.

mutual_information_job(X, mask, categories, pseudocount, columns, on::Backend=CPU()) =
    MutualInformationJob(X; categories=categories, pseudocount=pseudocount, mask=mask, columns=columns, backend=on)

mutual_information(job::MutualInformationJob) = job.mi

"A parent for each variable, from 0; -1 for the root."
chow_liu_parents(mi) = chow_liu_tree(mi) .- 1

"`states` and `head_of` from 0, of the same samples as `X`."
hclt_from_states(parent, latents, categories, heads, perturbation, seed, X, mask, states, head_of, leaves=[Leaf(categories)]) =
    hclt(parent .+ 1; latents=latents, categories=categories, leaves=leaves, heads=heads, perturbation=perturbation, seed=seed,
         observed=ObservedStates(query(X, mask), states, head_of .+ Int32(1)))

"`parent` from 0, -1 for the root; `classes` from 0."
tied_tree_of(parent, classes, root, transitions) = tied_tree(parent .+ 1, classes .+ 1, root, transitions)

"`lines` from 0."
tied_lines_of(lines, root, next, starts, transitions) = tied_lines(lines .+ 1, root, next, starts, transitions)

"The circuit's arrays, in the order of its constructor; the parameters are shared with the circuit."
circuit_arrays(c::Circuit) = (c.num_vars, c.kind, c.variable, c.categories, c.param_start, c.param_stride, c.success,
                              c.child_start, all_children(c), c.weight, c.leaf, c.heads, c.head_weight)

"A circuit of its own from borrowed arrays, in the constructor's order; without the last, all heads weigh the same."
function circuit_of(num_vars, arrays...)
    names, types = fieldnames(Circuit), fieldtypes(Circuit)
    wanted = [(name, T) for (name, T) in zip(names, types) if T <: Vector && name != :list]
    for (array, (name, T)) in zip(arrays, wanted)
        array isa T || throw(ArgumentError("$name: found an array of $(eltype(array)) $(reverse(size(array))), " *
                                           "wanted $(eltype(T)) of one dimension"))
    end
    return Circuit(num_vars, map(copy_in_pieces, arrays)...)
end

copy_in_pieces(array) = append_in_pieces!(similar(array, 0), array)

"Throws an `ArgumentError` where the circuit's parameters, which are in others' hands, too, are not what they must be."
check_circuit(c::Circuit) = (check(c); nothing)

jpc_reader(bytes, packed) = JpcReader(bytes; packed=packed)

"The circuit's fields: its own memory, all that there is to it."
circuit_fields(c::Circuit) = ntuple(i -> getfield(c, i), fieldcount(Circuit))

"A circuit of its own from borrowed fields."
circuit_of_fields(num_vars, kind, variable, categories, param_start, param_stride, success, child_start, list, child, rest...) =
    circuit_of(num_vars, kind, variable, categories, param_start, param_stride, success, child_start, all_children(child_start, list, child),
               rest...)

circuit_size(c::Circuit) = (c.num_vars, num_heads(c), num_units(c), num_edges(c), num_params(c))

has_only_probabilities(c::Circuit) = !any(in((LOGISTIC, POISSON, GAUSSIAN)), c.kind)

plan_of(c::Circuit, soft) = Plan(c; soft=soft)

"What evaluates a circuit on the backend of that name; a plan does on the CPU."
engine_on(c::Circuit, soft, on::Backend) = engine(c, on; soft=soft)

"An engine that has the circuit's parameters of now."
ready(plan::Plan) = CPUEngine(plan)
ready(e::Engine) = (refresh!(e); e)

query(X, ::Nothing) = X
query(X, mask) = Masked(X, mask)

"Throws an `ArgumentError` that names the first value which is no category of its variable."
check_table(c::Circuit, X, mask) = check_data(query(X, mask), category_limits(c))

"Fills `out`, (heads, samples), with the log-likelihoods of all heads, or, where it has one row, of head `head`."
log_likelihoods!(out, evaluator, X, mask, head) =
    (certain_log_likelihood!(out, ready(evaluator), query(X, mask), which_heads(evaluator, head)); nothing)

"Of as many samples of the evidence, from `first` on, as `out` has room for."
function log_likelihoods!(out, evaluator, X::SoftEvidence, first, head)
    K, V, _ = size(X.likelihood)
    GC.@preserve X begin
        part = unsafe_wrap(Array, pointer(X.likelihood, 1 + first * K * V), (K, V, size(out, 2)))
        evidence = SoftEvidence(part, X.offset[first + 1:first + size(out, 2)])
        certain_log_likelihood!(out, ready(evaluator), evidence, which_heads(evaluator, head))
    end
    return nothing
end

which_heads(evaluator, head) = head < 0 ? (1:num_heads(circuit(evaluator))) : (head + 1:head + 1)

"EM from epoch `finished` on: an epoch's order and step depend on its number alone."
function em_job(c, X, mask, head_of, weights, epochs, batch_size, first_step, last_step, pseudocount, shuffle, seed, finished,
                on::Backend=CPU())
    job = EMJob(c, query(X, mask), head_of .+ Int32(1); weights=weights, epochs=epochs, batch_size=batch_size,
                step_size=(first_step, last_step), pseudocount=pseudocount, shuffle=shuffle, seed=seed, backend=on)
    job.epoch = finished
    return job
end

"EM on a joint model; the patch circuits come last, but for a backend, `candidates` are from 0. The order and step of an epoch depend on its number alone."
function joint_em_job(patches, candidates, epochs, batch_size, first_step, last_step, pseudocount, prior_pseudocount, seed, tied, prior,
                      rest::Union{Circuit,Backend}...)
    on, circuits = rest[end] isa Backend ? (rest[end], rest[1:end - 1]) : (CPU(), rest)
    return JointEMJob(prior, collect(Circuit, circuits), patches; candidates=candidates, tied=tied, epochs=epochs, batch_size=batch_size,
                      step_size=(first_step, last_step), pseudocount=pseudocount, prior_pseudocount=prior_pseudocount, seed=seed,
                      backend=on)
end

"Fills `scores`, zeros, with the heads' scores of all patches (`head_scores!`), of circuits whose plans or engines are given."
function patch_scores!(scores, patches, mask, tied, evaluators...)
    found = places([circuit(evaluator) for evaluator in evaluators], size(patches, 2); tied=tied)
    head_scores!(scores, [ready(evaluator) for evaluator in evaluators], found, patches, mask, nothing)
    return nothing
end

"`parts`: a table of p_c(d | h) for each channel, then plans or engines of the circuits, shape after shape and channel after channel."
function emissions(steps, join, parts...)
    channels = length(steps)
    engines = [ready(evaluator) for evaluator in parts[channels + 1:end]]
    shapes = [engines[i:i + channels - 1] for i in 1:channels:length(engines)]
    return Emissions(shapes, steps, join, collect(Matrix{Float32}, parts[1:channels]))
end

emission_scores!(out, patches, mask, em::Emissions) = emission_scores!(out, em, patches, mask)

emission_shares!(joins, patches, mask, weights, em::Emissions, offsets...) = emission_shares!(joins, offsets, em, patches, mask, weights)

"EM on a model with offsets. `ties`: those of [`Ties`](@ref), or nothing where no parameters of the prior are tied."
function offset_em_job(patches, candidates, epochs, batch_size, first_step, last_step, pseudocount, prior_pseudocount, seed, prior, em, ties,
                       on::Backend=CPU())
    return OffsetEMJob(prior, em, patches; candidates=candidates, ties=ties === nothing ? nothing : Ties(ties), epochs=epochs, batch_size=batch_size,
                       step_size=(first_step, last_step), pseudocount=pseudocount, prior_pseudocount=prior_pseudocount, seed=seed,
                       backend=on)
end

"""
`group`: of each state, from 1. `parts`: p(s) of the first position, p_c(d | s) of each channel, p(s' | s) of each direction, and of each of
these and each channel p_c(d' | d, g, g').
"""
function field(rows, columns, group, parts...)
    C = length(parts) ÷ 3 - 1
    return Field(rows, columns, collect(Int, group), parts[1], collect(parts[2:C + 1]), collect(parts[C + 2:C + 3]),
                 [collect(parts[C + 4:2C + 3]), collect(parts[2C + 4:3C + 3])])
end

field_shares_of!(joins, number, patches, mask, f, em, offsets...) = field_shares!(joins, offsets, number, f, em, patches, mask)

function field_em_job(patches, candidates, epochs, batch_size, first_step, last_step, pseudocount, prior_pseudocount, seed, f, em)
    return FieldEMJob(f, em, patches; candidates=candidates, epochs=epochs, batch_size=batch_size, step_size=(first_step, last_step),
                      pseudocount=pseudocount, prior_pseudocount=prior_pseudocount, seed=seed)
end

"The codec of a circuit with one head."
circuit_coder(c::Circuit) = joint_coder(nothing, true, c)

"That of a joint model; of one that is not tied, the circuits of the first position come first. `prior`: nothing where there is one position."
function joint_coder(prior, tied, circuits...)
    heads = sum(num_heads(c) for c in circuits)
    states = tied ? heads : heads ÷ prior.num_vars
    categories = Int(maximum(category_limits(circuits[1])))
    own, positions = Circuit[], Vector{CodingChannel}[]
    for c in circuits
        push!(own, c)
        sum(num_heads(c) for c in own) == states || continue
        push!(positions, CodingChannel[CodingChannel(own, categories, ones(Float32, states, 1))])
        own = Circuit[]
    end
    return Coder(prior, positions, nothing)
end

"That of a model with offsets: `parts` are a table of p_c(d | h) for each channel, then the circuits, shape after shape and channel after channel."
function offset_coder(prior, steps, join, parts...)
    return Coder(prior, offset_channels(steps, parts), join)
end

"That of a field: `parts` are p(j | s), then the circuits, as for [`offset_coder`](@ref)."
field_coder(f::Field, steps, join, circuits...) = Coder(f, offset_channels(steps, (f.first_offsets..., circuits...)), join)

function offset_channels(steps, parts)
    C = length(steps)
    circuits = parts[C + 1:end]
    return [CodingChannel[CodingChannel(collect(Circuit, circuits[c:C:end]), steps[c], parts[c]) for c in 1:C]]
end

"An image's way through a codec, for encoding or for decoding."
coding(c::Coder, X, decode) = Coding(c, X, decode)
coding(c::WindowCoder, X, decode) = WindowCoding(c, X, decode)

"Values of an image, entries of the largest table, and about how many bytes coding an image takes."
coder_size(c::Coder) = (patch_size(c) * length(c.positions), widest_table(c), image_bytes(c))
coder_size(c::WindowCoder) = (num_image_values(c), widest_table(c), image_bytes(c))

flow_job(evaluator, X, mask, head_of, weights) = FlowJob(ready(evaluator), query(X, mask), head_of .+ Int32(1); weights=weights)

"The flows of all units, and of the edges that `write_jpc` writes, in its order."
function file_flows(job::FlowJob)
    units, edge_flows = unit_flows(job)
    return units, edge_flows[circuit(job.engine).weight .> 0]
end

"Statistics that add up: flows of edges and of the inputs' categories; the weighted log-likelihood, and the weight."
statistics(job::FlowJob) = (job.counts.weight, job.counts.leaf, job.total, total_weight(job.sources))

function apply_statistics!(plan::Plan, edge_flows, category_flows, step, pseudocount)
    0 < step <= 1 || throw(ArgumentError("step_size = $step: want a number in (0, 1]"))
    check_pseudocount(pseudocount)
    counts = ExpectedCounts(edge_flows, category_flows)
    check_counts(plan.circuit, counts)
    apply!(CPUEngine(plan), counts, step, pseudocount)
    return nothing
end

sample_job(plan, X, mask, head_of, out, seed) = SampleJob(plan, query(X, mask), head_of .+ Int32(1), out; seed=seed)

marginals_job(plan, X, mask, head_of, out) = MarginalsJob(plan, query(X, mask), head_of .+ Int32(1), out)

completion_job(plan, X, mask, head_of, out) = CompletionJob(plan, query(X, mask), head_of .+ Int32(1), out)

latent_entropy_job(plan, X, mask, head_of, out) = PosteriorJob(plan, query(X, mask), head_of .+ Int32(1), LatentEntropy(out))

moments_job(plan, X, mask, head_of, mean, variance) =
    PosteriorJob(plan, query(X, mask), head_of .+ Int32(1), Moments(mean, variance, plan.circuit))

"`out`: 0 for variables over real numbers."
gradient_job(plan, X, mask, head_of, out) = PosteriorJob(plan, query(X, mask), head_of .+ Int32(1), Gradient(out))

unit_flows_job(plan, X, mask, head_of, out) = PosteriorJob(plan, query(X, mask), head_of .+ Int32(1), UnitFlows(out))

"Nats, and whether they are those of the distributions over the variables alone."
divergence(p, q, head_p, head_q) = (kl_divergence(p, q, head_p + 1, head_q + 1), is_deterministic(p, q))

log_overlap(p, q, head_p, head_q) = log_inner_product(p, q, head_p + 1, head_q + 1)

support_job(plan, X, mask, head_of, weights) = SupportJob(plan, query(X, mask), head_of .+ Int32(1); weights=weights)

circuit_with_heads(c, heads) = with_heads(c, heads .+ 1)

check_selection(c, select, threshold, noise) = check_growth(c, select .+ 1, threshold, noise)

"`total`: the weight of the samples whose flows these are."
grow_circuit(c, unit_flows, total, select, threshold, noise, seed) =
    grow(c, unit_flows, select .+ 1; threshold=least_flow(threshold, total), noise=noise, seed=seed)

# What `Boundary` must know of these functions and types: which arguments are written to, and what copies all that it is given.

Boundary.writes(::Type{SoftEvidence}) = (1,)
Boundary.writes(::Union{typeof(sample_job),typeof(marginals_job),typeof(completion_job)}) = (5,)
Boundary.writes(::Union{typeof(latent_entropy_job),typeof(gradient_job),typeof(unit_flows_job)}) = (5,)
Boundary.writes(::typeof(moments_job)) = (5, 6)
Boundary.writes(::typeof(emissions)) = (2, 3, 4, 5, 6)  # EM does; a channel more is a plan
Boundary.writes(::typeof(emission_shares!)) = (1, 6, 7, 8, 9)

Boundary.writes(::typeof(next_tables!)) = (1, 2, 3)
Boundary.writes(::typeof(coding)) = (2,)
Boundary.writes(::typeof(window_rows!)) = (1, 2)
Boundary.writes(::typeof(draw_pixels!)) = (1,)

Boundary.borrows(c::Circuit, arguments) = any(name -> any(x -> x isa Array && x === getfield(c, name), arguments), fieldnames(Circuit))

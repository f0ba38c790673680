# An independent, slow reference in Float64, straight from the definitions, and random circuits to hold
# the engine to.

"All assignments of `V` variables with `C` categories, one a column."
assignments(V, C) = [(i ÷ C^(v - 1)) % C for v in 1:V, i in 0:C^V - 1]

"Values of all units for one sample, in the linear domain; x[v] = -1 marginalises variable v."
function reference_values(c, x)
    p = zeros(length(c.kind))
    for u in eachindex(p)
        kids = c.child_start[u]:c.child_start[u + 1] - 1
        p[u] = if LVDJuice.isinput(c.kind[u])
            value = x[c.variable[u]]
            value < 0 ? 1.0 : Float64(c.leaf[c.param_start[u] + value * c.param_stride[u]])
        elseif c.kind[u] == LVDJuice.PRODUCT
            prod(p[LVDJuice.child(c, u, e)] for e in kids)
        else
            sum(c.weight[e] * p[LVDJuice.child(c, u, e)] for e in kids)
        end
    end
    return p
end

"Unit and edge flows of one sample whose head is unit `head`."
function reference_flows(c, p, head)
    flow, edge = zeros(length(p)), zeros(length(c.weight))
    flow[head] = 1
    for u in reverse(eachindex(p)), e in c.child_start[u]:c.child_start[u + 1] - 1
        v = LVDJuice.child(c, u, e)
        if c.kind[u] == LVDJuice.PRODUCT
            flow[v] += flow[u]
        elseif p[u] > 0
            edge[e] = c.weight[e] * p[v] / p[u] * flow[u]
            flow[v] += edge[e]
        end
    end
    return flow, edge
end

"One full-batch EM step: the new weights and leaf parameters."
function reference_step(c, X, head_of, s, a)
    edge, counts = zeros(length(c.weight)), zeros(length(c.leaf))
    for n in axes(X, 2)
        x = X[:, n]
        flow, e = reference_flows(c, reference_values(c, x), c.heads[head_of[n]])
        edge .+= e
        for u in eachindex(flow)
            LVDJuice.isinput(c.kind[u]) || continue
            counts[c.param_start[u] + x[c.variable[u]] * c.param_stride[u]] += flow[u]
        end
    end
    weight, leaf = Float64.(c.weight), Float64.(c.leaf)
    function step!(theta, E, range)
        prior = a / length(range)
        total = sum(E[range]) + a
        total > 0 && (theta[range] .= (1 - s) .* theta[range] .+ s .* (E[range] .+ prior) ./ total)
    end
    for u in eachindex(c.kind)
        c.kind[u] == LVDJuice.SUM && step!(weight, edge, c.child_start[u]:c.child_start[u + 1] - 1)
        LVDJuice.isinput(c.kind[u]) || continue
        range_of = range(c.param_start[u], step=c.param_stride[u], length=c.categories[u])
        if c.kind[u] == LVDJuice.CATEGORICAL
            step!(leaf, counts, range_of)
        elseif c.kind[u] == LVDJuice.BINOMIAL
            N, total = c.categories[u] - 1, sum(counts[range_of]) + a
            if total > 0
                p = (1 - s) * c.success[u] + s * (sum((0:N) .* counts[range_of]) + a * N / 2) / (N * total)
                leaf[range_of] .= [binomial(N, x) * p^x * (1 - p)^(N - x) for x in 0:N]
            end
        elseif c.kind[u] == LVDJuice.LOGISTIC
            C, total = c.categories[u], sum(counts[range_of]) + a
            if total > 0 && C > 1
                shares = (1 - s) .* leaf[range_of] .+ s .* (counts[range_of] .+ a / C) ./ total
                leaf[range_of] .= logistic_table(C, searched_logistic(shares)...)
            end
        end
    end
    return weight, leaf
end

"""
Whether a circuit's inputs are what the reference says. A logistic's table is compared in absolute terms, because the top that a search finds is
flat, and its parameters are not: where there are two categories, many say the same.
"""
function same_inputs(c, leaf; rtol)
    logistic = fill(false, length(leaf))
    for u in findall(==(LVDJuice.LOGISTIC), c.kind)
        logistic[range(c.param_start[u], step=c.param_stride[u], length=c.categories[u] + 2)] .= true
        places = range(c.param_start[u], step=c.param_stride[u], length=c.categories[u])
        isapprox(c.leaf[places], leaf[places]; atol=1e-5, norm=x -> maximum(abs, x)) || return false
    end
    return close_to(c.leaf[.!logistic], leaf[.!logistic]; rtol=rtol)
end

"The discretised logistic by its definition: what lies between the middles of neighbouring levels, and beyond the ends."
function logistic_table(C, location, scale)
    below(t) = 1 / (1 + exp(-(big(t) - location) / scale))
    return [Float64((x == C - 1 ? 1 : below(x + 0.5)) - (x == 0 ? 0 : below(x - 0.5))) for x in 0:C - 1]
end

"Location and scale of the likeliest logistic, by a search that goes wherever it is better, in ever smaller steps."
function searched_logistic(shares)
    C = length(shares)
    value(m, s) = sum(h * log(max(p, 1e-300)) for (h, p) in zip(shares, logistic_table(C, m, exp(s))) if h > 0)
    m, s, step = (C - 1) / 2, log(C / 4), 1.0
    best = value(m, s)
    while step > 1e-9
        better = false
        for (dm, ds) in ((step, 0), (-step, 0), (0, step), (0, -step), (step, step), (-step, step), (step, -step), (-step, -step))
            new = (m + dm * exp(s), s + ds)
            LVDJuice.LEAST_LOGISTIC_SCALE <= exp(new[2]) <= LVDJuice.MOST_LOGISTIC_SCALES * (C - 1) || continue
            found = value(new...)
            found > best && ((best, m, s, better) = (found, new..., true))
        end
        better || (step /= 2)
    end
    return m, exp(s)
end

"""
A random smooth and decomposable circuit over `V` variables with `C` categories: for every region a few units, sparse sums
with shared children from several partitions and depths, products that take units in any order, several heads.
"""
function random_circuit(rng, V, C, heads)
    b = LVDJuice.Builder(V)
    weights(n) = (w = rand(rng, Float32, n) .+ 0.05f0; w ./ sum(w))
    regions = Dict{Vector{Int},Vector{Int}}()
    function units_over(scope)
        haskey(regions, scope) && return regions[scope]
        pool = Int[]
        if length(scope) == 1
            table = permutedims(reduce(hcat, [weights(C) for _ in 1:rand(rng, 1:18)]))
            append!(pool, LVDJuice.add_inputs!(b, scope[1], table))
            rand(rng, Bool) && append!(pool, LVDJuice.add_indicators!(b, scope[1], rand(rng, 0:C-1, 2), C))
            C == 2 && rand(rng, Bool) &&
                append!(pool, LVDJuice.add_indicators!(b, scope[1], [0, 1], C; kind=LVDJuice.LITERAL))
            rand(rng, Bool) && append!(pool, LVDJuice.add_binomials!(b, scope[1], C - 1, rand(rng, Float32, 3)))
            rand(rng, Bool) && append!(pool, LVDJuice.add_logistics!(b, scope[1], C, (C - 1) .* rand(rng, 2), 0.3 .+ rand(rng, 2)))
        else
            for _ in 1:rand(rng, 1:2)  # partitions
                cut = shuffle(rng, scope)
                at = rand(rng, 1:length(scope) - 1)
                parts = [units_over(sort(cut[1:at])), units_over(sort(cut[at + 1:end]))]
                for _ in 1:rand(rng, 1:6)
                    push!(pool, LVDJuice.add_product!(b, shuffle(rng, [rand(rng, part) for part in parts])))
                end
            end
        end
        sums = Int[]
        for _ in 1:rand(rng, 1:7)
            kids = unique(rand(rng, pool, rand(rng, 1:length(pool))))
            push!(sums, LVDJuice.add_sum!(b, kids, weights(length(kids))))
        end
        deeper = vcat(pool, sums)  # sums over sums, and over units of different depth
        kids = unique(rand(rng, deeper, rand(rng, 1:length(deeper))))
        push!(sums, LVDJuice.add_sum!(b, kids, weights(length(kids))))
        return regions[scope] = rand(rng, Bool) ? sums : vcat(sums, pool)
    end
    whole = units_over(collect(1:V))
    tops = [LVDJuice.add_sum!(b, whole, weights(length(whole))) for _ in 1:heads]
    return Circuit(b, tops)
end

"Copies of a circuit's arrays."
arrays_of(c) = [copy(a) for a in LVDJuice.circuit_arrays(c)[2:end]]

"A level between the values, far from all of them."
function level_between(rng, values)
    sorted = sort(unique(values))
    gaps = [i for i in 1:length(sorted) - 1 if sorted[i + 1] > 1.01 * sorted[i] + 1e-6]
    isempty(gaps) && return sorted[end] + 1
    i = rand(rng, gaps)
    return (sorted[i] + sorted[i + 1]) / 2
end

"""
Adds the flows of sample `n` to `stat`, exactly, and returns log p(x | head) (without a soft evidence's offset). A sample of
probability zero has no flow.
"""
function add_exact_flows!(stat, c, X, n, head, sample_weight)
    value = LVDJuice.log_values(c, X, n)
    flow = zeros(LVDJuice.num_units(c))
    flow[c.heads[head]] = sample_weight
    isfinite(value[c.heads[head]]) || return -Inf
    for u in reverse(1:LVDJuice.num_units(c))
        flow[u] > 0 || continue
        if LVDJuice.isinput(c.kind[u])
            LVDJuice.add_input_flow!(stat, c, u, X, n, flow[u])
        else
            for e in LVDJuice.edges(c, u)
                v = LVDJuice.child(c, u, e)
                if c.kind[u] == LVDJuice.PRODUCT
                    flow[v] += flow[u]
                else
                    ratio = exp(value[v] - value[u]) * flow[u]
                    stat.weight[e] += ratio
                    flow[v] += c.weight[e] * ratio
                end
            end
        end
    end
    return value[c.heads[head]]
end

"One batch, the first of an epoch that never ends."
function one_batch!(job)
    job.position = 0
    expect!(job)
    maximise!(job)
end

"One EM step on all samples."
one_step(c, X, head_of; step, pseudocount) =
    finish!(EMJob(c, X, head_of; epochs=1, batch_size=length(head_of), step_size=(step, step), pseudocount=pseudocount))
